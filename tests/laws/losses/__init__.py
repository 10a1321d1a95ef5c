"""Common losses: those that work, and those that are refused."""

from .cases import EXAMPLES as EXAMPLES
from .cases import several as several
from .unusable import UNUSABLE as UNUSABLE
from .working import WORKING as WORKING
