"""CI runs on every supported Python, the hooks run the same checks as `make check`, and the issue forms can be
parsed.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from tests.kit.paths import ROOT


def load_yaml(path: str) -> Any:
    """Parses a YAML file. `path` is relative to the root of the repository."""
    return yaml.safe_load((ROOT / path).read_text())


def test_ci_runs_on_every_supported_python():
    """The CI workflow runs .ci/run on every Python version that requires-python allows."""
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", supported)
    assert bounds is not None

    job = load_yaml(".github/workflows/ci.yml")["jobs"]["run"]

    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]
    assert job["steps"][-1] == {"run": ".ci/run"}


def test_hooks_equal_the_steps_of_make_check():
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    (repository,) = load_yaml(".pre-commit-config.yaml")["repos"]

    for hook in repository["hooks"]:
        program = hook["entry"].removesuffix(" --force-exclude")
        assert program in makefile


def test_issue_forms_have_fields():
    """Each issue form has a name, a description, and fields with unique ids."""
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

    assert len(forms) == 2
    for form in forms:
        found = yaml.safe_load(form.read_text())
        assert found["name"]
        assert found["description"]
        ids = [field["id"] for field in found["body"]]
        assert len(set(ids)) == len(ids) > 1
