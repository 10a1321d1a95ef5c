"""A first configuration for one's data, with comments."""

from dpmodel.starter.configuration import starter_configuration as starter_configuration
from dpmodel.starter.configuration import write_starter as write_starter
