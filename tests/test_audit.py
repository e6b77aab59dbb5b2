"""pyproject.toml allows no version of a dependency that is known to have a security hole."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CI = Path(__file__).parents[1] / ".ci"


@pytest.fixture
def audit(monkeypatch):
    if not CI.is_dir():
        pytest.skip("needs .ci/ of a checkout")
    monkeypatch.syspath_prepend(str(CI))
    import audit

    yield audit
    for name in ("audit", "requirements"):
        sys.modules.pop(name, None)


def test_no_version_with_a_known_hole_is_allowed(audit):
    assert audit.allowed() == []


def test_a_version_with_a_hole_is_named(audit, monkeypatch):
    assert any("CVE-2025-48379" in hole for hole in audit.holes("Pillow", "11.2.1"))
    assert list(audit.holes("pillow", "12.2.0")) == []
    monkeypatch.setattr(audit, "requirements", lambda extras: ["torch>=2.5", "mlflow>=3.13,<4"])
    assert [hole.split(":")[0] for hole in audit.allowed()] == ["torch 2.5"] * 2


def test_a_service_that_knows_no_package_has_not_answered(audit, monkeypatch):
    known, unknown = (
        {"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]},
        {"name": "b", "skip_reason": "not found"},
    )
    monkeypatch.setattr(audit, "find_spec", lambda name: True)
    for answer, expected in (([unknown], None), ([known, unknown], ["a 1: CVE-1"])):
        said = SimpleNamespace(stdout=json.dumps({"dependencies": answer}))
        monkeypatch.setattr(audit.subprocess, "run", lambda *_, said=said, **__: said)
        assert audit.published() == expected


def test_where_nobody_can_be_asked_the_list_counts(audit, monkeypatch, capsys):
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    monkeypatch.setattr(audit, "installed", lambda: ["torch 2.5: a hole"])
    assert audit.main() == 1
    assert "torch 2.5: a hole" in capsys.readouterr().out
