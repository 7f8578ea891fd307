"""Which primitives of JAX have a rule: all that its public functions are made of, but for those named here."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import git_rebasin.inference.infer  # noqa: F401  (their rules)
from git_rebasin.inference.trace import RULES
from git_rebasin.jaxprs import CALLS, LOOPS, jaxprs_within

X, V, I = jnp.full((4, 4), 0.5), jnp.full(4, 0.5), jnp.arange(4)
KEY = jax.random.key(0)

# Functions by what they are made of that others are not; the rest is in the other files of tests.
FUNCTIONS = {
    "sort": lambda: (lax.sort(X), lax.top_k(X, 2), jnp.argsort(V), jnp.argmax(X), jnp.median(X)),
    "cumulative": lambda: (jnp.cumsum(X), jnp.cumprod(X), lax.cummax(X), lax.cumlogsumexp(X)),
    "places": lambda: (X[I], X.at[I].set(X), X.at[I].multiply(X), jnp.take_along_axis(X, I[None], 0)),
    "shapes": lambda: (jnp.tile(X, 2), jnp.pad(X, 1), X[::2], jnp.split(X, 2), lax.rev(X, (0,))),
    "random": lambda: (
        jax.random.normal(KEY),
        jax.random.gamma(KEY, V),
        jax.random.permutation(KEY, V),
    ),
    "keys": lambda: (jax.random.split(KEY), jax.random.fold_in(KEY, 1), jax.random.key_data(KEY)),
    "bits": lambda: (I << 1, I & 1, I ^ 2, lax.clz(I), lax.population_count(I), ~I),
    "special": lambda: (
        jax.scipy.special.gammainc(V, V),
        jax.scipy.special.polygamma(1, V),
        jax.scipy.special.betainc(V, V, V),
        jax.scipy.special.zeta(V + 2, V),
        jax.scipy.special.ndtri(V),
        lax.nextafter(V, V),
        lax.igamma_grad_a(V, V),
    ),
    "complex": lambda: (lax.complex(X, X).conj().real, jnp.fft.fft(X), jnp.angle(X + 1j)),
    "windows": lambda: (
        jax.grad(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME").sum())(
            X
        ),
        lax.reduce_window(X, 1.0, lax.mul, (2, 2), (1, 1), "SAME"),
        jax.image.resize(X, (2, 8), "cubic"),
        jnp.convolve(V, V),
    ),
    "reductions": lambda: (lax.reduce(X, 0.0, jnp.logaddexp, (0,)), jnp.all(X > 0), jnp.prod(X)),
    "matrices": lambda: (
        jnp.linalg.cholesky(X),
        jnp.linalg.eigh(X),
        jnp.linalg.qr(X),
        jnp.linalg.svd(X),
        jnp.linalg.svd(X, compute_uv=False),
        jnp.linalg.slogdet(X),
        jnp.linalg.inv(X),
        jnp.linalg.lstsq(X, V),
        jax.scipy.linalg.expm(X),
        jax.scipy.linalg.schur(X),
        jax.scipy.linalg.hessenberg(X),
        jax.scipy.linalg.solve_triangular(X, V),
        jax.scipy.sparse.linalg.cg(lambda x: X @ x, V),
        lax.linalg.tridiagonal_solve(V, V, V, X),
        lax.linalg.householder_product(X, V),
        lax.linalg.eig(X),
    ),
    "places of arrays": lambda: (
        jax.device_put([X, V]),
        lax.optimization_barrier((X, V)),
        lax.stop_gradient(X),
        lax.reduce_precision(X, 8, 7),
        jnp.copy(X),
    ),
    "activations": lambda: [f(X) for f in (jax.nn.gelu, jax.nn.softmax, jax.nn.mish, jax.nn.celu)],
    "attention": lambda: jax.nn.dot_product_attention(*3 * (X[None, :, None],)),
    "calls": lambda: (
        jax.checkpoint(jnp.sin)(X),
        lax.map(jnp.sin, X),
        lax.platform_dependent(X, default=jnp.sin),
        lax.associative_scan(jnp.add, X),
        lax.custom_root(lambda x: x - V, V, lambda f, x: x - f(x), lambda g, y: y),
    ),
}

# What has no rule has no arrays either, or is named in the tests of what is fixed.
WITHOUT = {"create_token", "platform_index"}


def primitives(jaxpr) -> set[str]:
    "The names of all primitives of a jaxpr"
    names = set()
    for eqn in jaxpr.eqns:
        within = [primitives(inner) for inner in jaxprs_within(eqn)]
        names |= {eqn.primitive.name}.union(*within)
    return names


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_public_functions_are_made_of_has_rules(name):
    with jax.numpy_rank_promotion("allow"):
        used = primitives(jax.make_jaxpr(FUNCTIONS[name])().jaxpr)
    assert used
    assert used - RULES.keys() - CALLS - LOOPS - WITHOUT == set()
