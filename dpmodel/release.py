"""Former place of ``dpmodel.ReleasePlan``; code that imports it from here keeps working."""

from dpmodel.planning.release import ReleasePlan as ReleasePlan
