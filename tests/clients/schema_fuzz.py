"""A property-based run over the document of the API: no server error, no answer that is not documented.

Run by the end-to-end tests, with JSON on standard input: url of a server (with a short context, so that
replies end), model that it serves, seconds that the run may take.
"""

import json
import os
import pathlib
import subprocess
import sys

facts = json.load(sys.stdin)
here = pathlib.Path(__file__).parent
checks = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]
command = [
    *(sys.executable, "-m", "schemathesis.cli", "run", f"{facts['url']}/openapi.json"),
    *("--phases", "examples,coverage,fuzzing"),
    *("--checks", ",".join(checks)),
    *("--max-time", str(facts["seconds"])),
    *("--seed", "1", "--workers", "1", "--request-timeout", "60"),
    # Metrics are text, and a socket is no request with an answer.
    *("--exclude-path", "/v1/stream"),
    *facts.get("more", []),
]
environment = {
    **os.environ,
    "SCHEMATHESIS_HOOKS": "schema_hooks",
    "PYTHONPATH": str(here),
    "PYTHONDONTWRITEBYTECODE": "1",
    "TREFOIL_MODEL": facts["model"],
    "NO_COLOR": "1",
}
ran = subprocess.run(command, env=environment, cwd=facts["folder"], check=False)
if ran.returncode == 0:
    print("ok")
sys.exit(ran.returncode)
