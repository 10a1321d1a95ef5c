"""The privacy report: what was spent, under which conditions, and what it does not cover."""

from dpmodel.runs.report.privacy_report import PrivacyReport as PrivacyReport
from dpmodel.runs.report.privacy_report import make_report as make_report
from dpmodel.runs.report.subject import ReportSubject as ReportSubject
from dpmodel.runs.report.words import report_in_words as report_in_words
