"""GLM-4.5 and GLM-4.5-Air."""

from __future__ import annotations

from rl.families.family import ModelSize

GLM_45 = ModelSize(parameters=355 * 10**9, layers=92, hidden=5120)

GLM_45_AIR = ModelSize(parameters=106 * 10**9, layers=46, hidden=4096)

PUBLISHED = {
    "zai-org/GLM-4.5": GLM_45,
    "zai-org/GLM-4.5-Base": GLM_45,
    "zai-org/GLM-4.5-Air": GLM_45_AIR,
    "zai-org/GLM-4.5-Air-Base": GLM_45_AIR,
}
"""As the GLM-4.5 report (arXiv:2508.06471, table 1) gives them, without the multi-token-prediction layer; used when the
model's config.json is not on this machine."""
