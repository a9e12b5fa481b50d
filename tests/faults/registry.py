"""All jobs. Importing this imports all that they need, once, before anything is forked."""

from __future__ import annotations

import peft  # noqa: F401  # else each fork of a job imports it anew
import torch

from tests.faults import jobs_latents, jobs_models, jobs_people, jobs_training, ray_faults, serving
from tests.faults.kit import Special

torch.set_num_threads(1)
JOBS = (*jobs_latents.JOBS, *jobs_training.JOBS, *jobs_models.JOBS, *jobs_people.JOBS)
SPECIALS = {"serve": Special(jobs_models.give_reward_models, serving.KINDS)}
LEFT_OUT = {"ray": reason} if (reason := ray_faults.missing()) else {}
"""Jobs that cannot run here, and why."""
if not LEFT_OUT:
    SPECIALS["ray"] = ray_faults.SPECIAL
