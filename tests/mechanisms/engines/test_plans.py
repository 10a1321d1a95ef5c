from __future__ import annotations

import time

import pytest
import torch

from mechanisms.engines.layers.rules import Plan, Term, layer_rule, squared_norms
from mechanisms.engines.plans import PlanBook

ROWS = torch.randn(3, 4)


def plan(name, cost, seconds=0.0):
    def run():
        time.sleep(seconds)
        return Term.of_rows(ROWS)

    return Plan(name, run, cost)


def test_the_plan_of_least_estimated_cost_is_taken_every_time():
    book = PlanBook()
    for _ in range(2):
        book.run(("layer",), [plan("dear", 2.0, 0.0), plan("cheap", 1.0, 0.01)], 4)
    assert book.choices["layer",].plan == "cheap"
    assert "estimated" in book.choices["layer",].words()


def test_timed_plans_take_the_fastest_and_remember_it():
    book = PlanBook(timed=True)
    book.run(("layer",), [plan("slow", 1.0, 0.02), plan("fast", 2.0)], 4)
    assert book.choices["layer",].plan == "fast"
    choice = book.choices["layer",]
    book.run(("layer",), [plan("slow", 1.0), plan("fast", 2.0, 0.02)], 4)
    assert book.choices["layer",] is choice


def test_a_term_adds_its_weighted_rows_to_what_is_there():
    out, factors = torch.ones(4), torch.tensor([1.0, 0.0, 0.5])
    Term.of_rows(ROWS).add_to(out, factors)
    assert torch.allclose(out, 1 + factors @ ROWS)


@pytest.mark.parametrize("length", [1, 4096, 4097, 100_003])
def test_squared_norms_of_long_rows_keep_float32_accuracy(length):
    rows = torch.randn(2, length)
    exact = rows.double().square().sum(1)
    assert float(((squared_norms(rows).double() - exact) / exact).abs().max()) < 1e-6


def test_what_is_neither_a_rule_nor_a_function_is_refused():
    with pytest.raises(TypeError, match="LayerRule subclass or a function"):
        layer_rule(torch.nn.Identity)(3)
