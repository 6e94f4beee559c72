"""Steps of a template: counted, and over when they are used up."""

from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError

from zotune.data.budget import BASE, PER_CHARACTER, Budget


def test_steps_are_used_up() -> None:
    """All that is allowed may be spent, at once or one by one, and not one more."""
    budget = Budget()
    budget.allow(0)
    budget.spend(BASE - 1)
    budget.spend(1)
    with pytest.raises(SecurityError, match="too many steps"):
        budget.spend(1)


def test_more_is_allowed_for_more_that_is_given() -> None:
    """Each rendering begins anew, with steps for each character."""
    budget = Budget()
    for size in (10, 3):
        budget.allow(size)
        budget.spend(BASE + PER_CHARACTER * size)
        with pytest.raises(SecurityError):
            budget.spend(1)


def test_before_a_rendering_nothing_is_spent() -> None:
    """A constant that is folded while a template is read would cost what nobody counts."""
    with pytest.raises(SecurityError):
        Budget().spend(1)
