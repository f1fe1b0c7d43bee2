"""What is not loaded with the package; who may import whom is `.importlinter`'s."""

from __future__ import annotations

import json
import subprocess
import sys

LOAD_EVERYTHING = """
import importlib, json, pathlib, sys
import kvtier

root = pathlib.Path(kvtier.__file__).parent
for path in root.rglob("*.py"):
    parts = path.relative_to(root.parent).with_suffix("").parts
    if parts[1] not in ("__main__", "testing"):
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
print(json.dumps(sorted(sys.modules)))
"""


def test_loading_all_of_kvtier_loads_no_backend_no_gpu_library_and_no_test_code() -> None:
    loaded = set(
        json.loads(
            subprocess.run(
                [sys.executable, "-c", LOAD_EVERYTHING],
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            ).stdout
        )
    )
    assert {"kvtier.cli", "kvtier.chain", "kvtier.report.terminal"} <= loaded
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & {"cupy", "pyarrow", "plotly", "jinja2", "pytest", "hypothesis"}
    assert not {root for root in roots if root.startswith("kvtier_")}
    assert not {name for name in loaded if name.startswith("kvtier.testing")}
