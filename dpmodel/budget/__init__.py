"""Planning a privacy budget without data and without torch."""

from dpmodel.budget.answer import BudgetAnswer as BudgetAnswer
from dpmodel.budget.answer import answer_budget as answer_budget
from dpmodel.budget.scenarios import Scenario as Scenario
