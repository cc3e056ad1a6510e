"""Calls of the public functions whose arguments may be sharded along the batch, and how their results lie."""

import torch

import vae_fast

K = 3


def tensors(n, **shapes):
    """float64 tensors by name, and their batch dimension; "n" in a shape is the batch."""
    generator = torch.Generator().manual_seed(n)
    made = {}
    for name, shape in shapes.items():
        t = torch.rand([n if size == "n" else size for size in shape], generator=generator, dtype=torch.float64) + 0.1
        made[name] = (t, shape.index("n") if "n" in shape else None)
    return made


HEAD = {"x": ("n", 4), "recon": ("n", 4), "mu": ("n", 2), "logvar": ("n", 2)}
MIXTURE = {"x": ("n", 2), "weight_logits": (K,), "means": (K, 2), "scale": (K, 2)}
FULL = MIXTURE | {"scale": (K, 2, 2)}
LINEAR = {"x": ("n", 4), "h": ("n", 3), "weight": (4, 3), "bias": (4,)}

#: name: the shapes of the arguments, the call, and how the results lie where the batch is sharded
CASES = {
    "kl": ({"mu": ("n", 2), "logvar": ("n", 2)}, vae_fast.gaussian_kl, "S0"),
    "kl, prior": ({"mu": ("n", 2), "logvar": (2,), "prior_mu": (2,), "prior_logvar": ("n", 1)}, vae_fast.gaussian_kl, "S0"),
    "kl, K samples": ({"mu": (K, "n", 2), "logvar": ("n", 2)}, vae_fast.gaussian_kl, "S1"),
    "kl, sum": ({"mu": ("n", 2), "logvar": ("n", 2)}, lambda **t: vae_fast.gaussian_kl(**t, reduction="sum"), "P"),
    "kl, mean": ({"mu": ("n", 2), "logvar": ("n", 2)}, lambda **t: vae_fast.gaussian_kl(**t, reduction="mean"), None),
    "kl, free bits": ({"mu": ("n", 2), "logvar": ("n", 2)}, lambda **t: vae_fast.gaussian_kl(**t, free_bits=torch.tensor(0.2)), "S0"),
    "gaussian": ({"x": ("n", 2), "mu": ("n", 2), "logvar": (2,)}, vae_fast.gaussian_log_prob, "S0"),
    "gaussian, event_dim 0": (
        {"x": ("n", 2), "mu": ("n", 2), "logvar": (2,)},
        lambda **t: vae_fast.gaussian_log_prob(**t, event_dim=0),
        "S0",
    ),
    "bernoulli": ({"x": ("n", 4), "logits": ("n", 4)}, lambda x, logits: vae_fast.bernoulli_log_prob(x, logits), "S0"),
    "elbo": (HEAD, vae_fast.elbo, "S0"),
    "elbo, one tensor twice": (
        {"x": ("n", 4), "mu": ("n", 4)},
        lambda x, mu: vae_fast.elbo(x.unsqueeze(2), mu.unsqueeze(2), mu, mu, event_dim=2),
        "S0",
    ),
    "elbo_loss": (HEAD, vae_fast.elbo_loss, "P"),
    "elbo_loss, sum": (HEAD, lambda **t: vae_fast.elbo_loss(**t, reduction="sum", beta=torch.tensor(0.5)), "P"),
    "elbo_loss, none": (HEAD, lambda **t: vae_fast.elbo_loss(**t, reduction="none"), "S0"),
    "elbo_loss, prior": (HEAD | {"prior_mu": (2,), "prior_logvar": (2,)}, vae_fast.elbo_loss, "P"),
    "elbo_loss, parts": (HEAD, lambda **t: vae_fast.elbo_loss(**t, return_parts=True), "P P P"),
    "elbo_loss, parts, none": (HEAD, lambda **t: vae_fast.elbo_loss(**t, reduction="none", return_parts=True), "S0 S0 S0"),
    "elbo_loss, K samples": (HEAD | {"recon": (K, "n", 4)}, vae_fast.elbo_loss, "P"),
    "elbo_loss, donated": (HEAD, lambda recon, **t: vae_fast.elbo_loss(recon=recon * 1.0, **t, donate_recon=True), "P"),
    "iwae_loss": (HEAD | {"recon": (K, "n", 4), "z": (K, "n", 2)}, lambda **t: vae_fast.iwae_loss(**t, reduction="sum"), "P"),
    "iwae_loss, mean": (HEAD | {"recon": (K, "n", 4), "z": (K, "n", 2), "prior_mu": (2,)}, vae_fast.iwae_loss, None),
    "reparameterize": ({"mu": ("n", 2), "logvar": ("n", 2), "noise": ("n", 2)}, vae_fast.reparameterize, "S0"),
    "reparameterize, K samples": (
        {"mu": ("n", 2), "logvar": (2,), "noise": (K, "n", 2)},
        lambda **t: vae_fast.reparameterize(**t, num_samples=K),
        "S1",
    ),
    "reparameterize_with_kl": (
        {"mu": ("n", 2), "logvar": ("n", 2), "prior_mu": (2,), "noise": (K, "n", 2)},
        lambda **t: vae_fast.reparameterize_with_kl(**t, num_samples=K),
        "S1 S0",
    ),
    "logsumexp": ({"a": (K, "n"), "weights": (K, 1)}, lambda a, weights: vae_fast.logsumexp(a, 0, weights), "S0"),
    "logsumexp, last": ({"a": ("n", K)}, vae_fast.logsumexp, "S0"),
    "mixture": (MIXTURE, vae_fast.mixture_log_prob, "S0"),
    "mixture, full": (FULL, lambda **t: vae_fast.mixture_log_prob(**t, covariance_type="full"), "S0"),
    "mixture, second batch dim": (MIXTURE | {"x": (2, "n", 2)}, vae_fast.mixture_log_prob, "S1"),
    "responsibilities": (MIXTURE, vae_fast.mixture_responsibilities, "S0"),
    "statistics": (MIXTURE, lambda **t: tuple(vae_fast.mixture_statistics(**t)), "S0 P P P"),
    "mixture, weights of each row": (MIXTURE | {"weight_logits": ("n", K)}, vae_fast.mixture_log_prob, "S0"),
    "mixture, joint and factorized": (MIXTURE, lambda **t: tuple(vae_fast.mixture_log_prob(**t, factorized="both")), "S0 S0"),
    "aggregate": ({"z": ("n", 2), "mu": (K, 2), "logvar": (K, 2)}, vae_fast.aggregate_log_prob, "S0"),
    "laplace": ({"x": ("n", 4), "loc": ("n", 4), "log_scale": (4,)}, vae_fast.laplace_log_prob, "S0"),
    "log-normal": ({"x": ("n", 4), "loc": ("n", 4), "log_scale": ("n", 4)}, vae_fast.log_normal_log_prob, "S0"),
    "student t": ({"x": ("n", 4), "df": (), "loc": ("n", 4), "log_scale": (4,)}, vae_fast.student_t_log_prob, "S0"),
    "continuous bernoulli": ({"x": ("n", 4), "logits": ("n", 4)}, vae_fast.continuous_bernoulli_log_prob, "S0"),
    "gaussian, bounded scale": (
        {"x": ("n", 4), "mu": ("n", 4), "logvar": (4,)},
        lambda **t: vae_fast.gaussian_log_prob(**t, scale_bounds=(0.3, 0.8, "softclip")),
        "S0",
    ),
    "poisson": ({"noise": ("n", 4), "rate": ("n", 4)}, lambda noise, rate: vae_fast.poisson_log_prob(noise.round(), rate), "S0"),
    "negative binomial": (
        {"noise": ("n", 4), "mu": ("n", 4), "theta": (4,)},
        lambda noise, **t: vae_fast.negative_binomial_log_prob(noise.round(), **t),
        "S0",
    ),
    "zero-inflated": (
        {"noise": ("n", 4), "mu": ("n", 4), "theta": (4,), "zi_logits": ("n", 4)},
        lambda noise, **t: vae_fast.zero_inflated_negative_binomial_log_prob(noise.round(), **t),
        "S0",
    ),
    "mixture of counts": (
        {"noise": ("n", 4), "mu_1": ("n", 4), "mu_2": ("n", 4), "theta_1": (4,), "pi_logits": ("n", 4)},
        lambda noise, **t: vae_fast.negative_binomial_mixture_log_prob(noise.round(), theta_2=None, **t),
        "S0",
    ),
    "categorical": (
        {"noise": ("n", 4), "logits": ("n", 4, 3)},
        lambda noise, logits: vae_fast.categorical_log_prob(noise.round().long(), logits),
        "S0",
    ),
    "discretised logistic": (
        {"noise": ("n", 4), "loc": ("n", 4), "log_scale": (4,)},
        lambda noise, **t: vae_fast.discretized_logistic_log_prob(noise.clamp(max=1.0), **t),
        "S0",
    ),
    "mdn": ({"y": ("n", 2), "weight_logits": (K,), "means": ("n", K, 2), "log_scale": ("n", K)}, vae_fast.mdn_log_prob, "S0"),
    "mdn, fixed": ({"y": ("n", 2), "weight_logits": ("n", K), "means": (K, 2), "log_scale": (K, 2)}, vae_fast.mdn_log_prob, "S0"),
    "mixture over pixels": (
        {"noise": ("n", 2, 2, 3), "params": ("n", 2, 2, 20)},
        lambda noise, params: vae_fast.discretized_logistic_mixture_log_prob(noise, params),
        "S0",
    ),
    "multinomial": ({"x": ("n", 4), "logits": ("n", 4)}, vae_fast.multinomial_log_prob, "S0"),
    "multinomial, one softmax": ({"x": ("n", 4), "logits": (4,)}, vae_fast.multinomial_log_prob, "S0"),
    "linear, counts": (LINEAR, vae_fast.linear_multinomial_log_prob, "S0"),
    "linear": (LINEAR, vae_fast.linear_bernoulli_log_prob, "S0"),
    "linear, mean": (LINEAR, lambda **t: vae_fast.linear_bernoulli_log_prob(**t, reduction="mean"), "P"),
    "linear, no bias": ({k: v for k, v in LINEAR.items() if k != "bias"}, vae_fast.linear_bernoulli_log_prob, "S0"),
}
NOT_DIFFERENTIABLE = {"noise"}
