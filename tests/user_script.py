"""What a user writes: `make test` checks its types. No tests here."""

import jax
import numpy as np

import git_rebasin as gr
from git_rebasin.zoo.mlp import init_mlp, mlp_apply

images = np.zeros((8, 28, 28, 1), np.float32)
params_a, params_b = (init_mlp(jax.random.key(seed), images.shape[1:]) for seed in (0, 1))
spec = gr.infer_permutation_spec(mlp_apply, params_a, images)
match = gr.weight_matching(jax.random.key(0), spec, params_a, params_b)
aligned_b = gr.apply_permutation(spec, match.perm, params_b)
units: int = sum(len(perm) for perm in match.perm.values())
merged = gr.lerp(params_a, aligned_b, 0.5)
result: gr.RebasinResult = gr.rebasin(mlp_apply, params_a, params_b, example=images)
cautions: list[str] = [str(caution) for caution in result.warnings]
print(result, cautions, mlp_apply(result.merged, images).shape)
print(match, f"{units} units", mlp_apply(merged, images).shape)
