"""The privacy report: what was spent, under which conditions, and what it does not cover."""

from dpmodel.report.privacy_report import PrivacyReport as PrivacyReport
from dpmodel.report.privacy_report import make_report as make_report
from dpmodel.report.subject import ReportSubject as ReportSubject
from dpmodel.report.words import report_in_words as report_in_words
