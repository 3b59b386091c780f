"""Hypothesis without deadlines (a shared machine stutters) and without a database (nothing left behind)."""

import os

from hypothesis import settings

# Triton reads it when first imported. On a machine with a GPU, TRITON_INTERPRET=0 runs the kernels there.
os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("suite", deadline=None, max_examples=40, database=None, print_blob=True)
settings.load_profile("suite")
