"""Names of models without importing them."""

import re
from importlib.util import find_spec
from pathlib import Path


def model_names(package: str = "dmformer") -> list[str]:
    """Entry points of `package`.models ("dmformer" or "timm"), read from the source: nothing is imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "models"
    found = (re.findall(r"^@register_model\ndef (\w+)", p.read_text("utf-8"), re.M) for p in folder.glob("*.py"))
    return sorted(name for names in found for name in names)
