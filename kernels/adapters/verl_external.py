"""What verl's setting `actor_rollout_ref.model.external_lib` imports in each worker (see `kernels/adapters/verl.py`)."""

from soundrl.kernels.adapters.verl import register

register()
