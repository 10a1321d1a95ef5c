"""Audit of a training: canaries in the data, bounds on epsilon, and meters of what is released."""

from dpmodel.audit.lines import Line as Line
from dpmodel.audit.report import AuditReport as AuditReport
from dpmodel.audit.request import audit as audit
