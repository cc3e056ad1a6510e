"""The examples that follow the lecture decks and papers: quick runs find what those say, and so do the committed results."""

import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import interpreters
import pytest
import torch
from matplotlib.image import imread

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: The examples that other tests run; every other one is run here.
ELSEWHERE = {"mixtures", "mdn_inverse_sine", "bayesian_neural_networks", "metropolis_hastings", "batch_size"}
ELSEWHERE |= {"thesis_training", "thesis_classifier", "thesis_latent"}
NAMES = sorted({path.stem for path in (EXAMPLES / "pictures").glob("*.json")} - ELSEWHERE)


def committed(name):
    return json.loads((EXAMPLES / "pictures" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A function that runs an example once with --quick, in this process, and gives its results."""
    out, done = tmp_path_factory.mktemp("lectures") / "deep", {}

    def run(name):
        if name not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(EXAMPLES)
                patch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(out)])
                torch.set_num_threads(1)  # of small networks, whose second thread costs more than it helps
                importlib.import_module(name).main()
            done[name] = json.loads((out / f"{name}.json").read_text())
        return done[name]

    run.out = out
    return run


def both(quick, name):
    return (quick(name), committed(name))


@pytest.mark.parametrize("name", NAMES)
def test_results_say_how_they_were_made(quick, name, capsys):
    results = quick(name)
    assert results["command"] == f"python examples/{name}.py --quick"
    assert committed(name)["command"].startswith(f"python examples/{name}.py")
    assert "--quick" not in committed(name)["command"]
    assert results["seed"] == committed(name)["seed"] == 0
    assert len(results["commit"]) >= 7


def test_autoencoders(quick):
    for results in both(quick, "autoencoders"):
        for fit in results["linear"]:
            assert fit["largest_angle_rad"] < 1e-2
            assert fit["error_linear"] == pytest.approx(fit["error_pca"], rel=1e-3)
        fits = {(f["dim"], f["model"]): f["test_error"] for f in results["deep"]["fits"]}
        for dim in (2, 4, 8):
            assert fits[dim, "mlp"] < fits[dim, "pca"] < results["variance"]
        errors = [error for (_, kind), error in fits.items() if kind == "pca"]
        assert errors == sorted(errors, reverse=True)
    assert results["dataset"] == "mnist"
    assert all(fits[dim, kind] < fits[dim, "pca"] for dim in (2, 4, 8, 16, 32) for kind in ("mlp", "cnn"))


def test_autoencoders_on_all_images(quick, monkeypatch, tmp_path, capsys):
    """Added to an earlier run's file; a run that was stopped is taken up; the deck's counts stand beside ours."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example, before = importlib.import_module("autoencoders"), quick("autoencoders")
    arguments = ["autoencoders.py", "--quick", "--out", str(tmp_path), "--all-images", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"^error: .*autoencoders.json: not there: run without --all-images first$"):
        example.main()
    (tmp_path / "autoencoders.json").write_text(json.dumps(before))
    example.main()
    assert "d = 8: epoch 3/3" in capsys.readouterr().out
    after = json.loads((tmp_path / "autoencoders.json").read_text())
    found = after.pop("all_images")
    assert after == before
    assert (found["command"], found["epochs"]) == ("python examples/autoencoders.py --quick --all-images 3", 3)
    fits = {(f["dim"], f["model"]): f for f in found["fits"]}
    assert found["originals_read_right"] > 0.9
    assert all(0.1 < f["accuracy"] <= 1.0 and 0 <= f["right_of_36"] <= 36 for f in fits.values())
    assert f"| 8 | CNN | {fits[8, 'cnn']['test_error']:.2f} |" in example.section(after | {"all_images": found})
    example.main()  # nothing is left to train: the same figures
    assert "epoch" not in capsys.readouterr().out
    assert json.loads((tmp_path / "autoencoders.json").read_text())["all_images"] == found


def test_generation(quick):
    for results in both(quick, "generation"):
        for dim in (16, 32):
            fits = [f for f in results["fits"] if f["dim"] == dim]
            assert [f["components"] for f in fits] == results["components"]
            assert fits[0]["test_log_likelihood_of_codes"] < fits[-1]["test_log_likelihood_of_codes"]
            assert fits[0]["distance"] > fits[-1]["distance"]  # the mixture's digits are nearer to real ones
    assert results["fits"][0]["confidence"] < results["fits"][2]["confidence"] < results["confidence_test"]


def test_autoencoder_and_vae(quick):
    for results in both(quick, "autoencoder_and_vae"):
        fits = {(f["dim"], f["model"]): f for f in results["fits"]}
        assert len(fits) == 4
        for dim in {dim for dim, _ in fits}:
            ae, vae = fits[dim, "ae"], fits[dim, "vae"]
            assert ae["error"] < vae["error"] < vae["error_of_codes"]
            assert ae["error_of_codes"] == pytest.approx(ae["error"])
            assert ae["deviation_most"] > 1.5 > vae["deviation_most"]  # nothing holds the autoencoder's codes near N(0, I)
            prior, one, many = ae["densities"]
            assert prior["log_likelihood"] < one["log_likelihood"] < many["log_likelihood"]
            assert many["distance"] < prior["distance"]


def test_generative_and_discriminative(quick):
    for results in both(quick, "generative_and_discriminative"):
        few, most = results["sizes"][0], results["sizes"][-1]
        fits = {(f["name"], f["labels"]): f for f in results["fits"]}
        for name in {name for name, labels in fits if labels == few}:
            assert fits[name, few]["right"] < fits[name, most]["right"]
        assert all(fit["log_prob"] < 0.0 for fit in results["fits"])
        assert fits["a Gaussian for each class, full", most]["right"] > fits["logistic regression, p(y given x)", most]["right"]
        by_name = {o["name"]: o for o in results["outliers"]}
        for noise in ("pixels in another order", "black for white"):
            assert by_name[noise]["vae"] > max(0.99, by_name[noise]["certainty"])
        assert sum(results["read_as_asked"]) / 10 > 0.5  # by chance 0.1
    assert by_name["nothing at all"]["log_prob"] > results["log_prob_digits"]  # simple images are probable


def test_bayesian_networks(quick):
    for results in both(quick, "bayesian_networks"):
        assert (results["states"], results["parameters"], results["parameters_of_the_table"]) == (48, 15, 47)
        assert results["total"] == pytest.approx(1.0, abs=1e-12)
        assert results["rgb_table"] == 16_777_215
        printed = [0.502, 0.389, 0.513, 0.3, 0.079, 0.578, 0.11, 0.629, 0.76]  # Koller and Friedman (2009), section 3.2.1.2
        assert [answer["probability"] for answer in results["answers"]] == pytest.approx(printed, abs=1.1e-3)
        *zero, dependent = (row["nats"] for row in results["mutual_information"])
        assert max(map(abs, zero)) < 1e-14 < 0.01 < dependent
        assert results["test_log_likelihood"] == pytest.approx(-results["entropy"], abs=0.1)
        network, table = results["divergence"]["network"], results["divergence"]["table"]
        assert network == sorted(network, reverse=True)
        assert all(n < t for n, t in zip(network, table, strict=True))
    assert 2 * results["sizes"][-1] * network[-1] == pytest.approx(15, rel=0.1)
    assert 2 * results["sizes"][-1] * table[-1] == pytest.approx(47, rel=0.1)


def test_gradient_estimators(quick):
    for results in both(quick, "gradient_estimators"):
        for place in results["places"]:
            found = {e["name"]: e for e in place["estimators"]}
            assert found["kl"]["variance"][-1] < found["joint"]["variance"][-1] < 0.1 * found["score"]["variance"][-1]
            assert found["baseline"]["variance"][-1] < 0.5 * found["score"]["variance"][-1]
            assert all(e["slope"] == pytest.approx(-1.0, abs=0.2) for e in found.values())
            assert all(e["largest_bias_in_standard_errors"] < 4.5 for e in found.values())


def test_vamp_prior(quick):
    for results in both(quick, "vamp_prior"):
        normal, mixture, vamp = results["fits"]
        assert vamp["parameters"] - normal["parameters"] == results["components"] * (784 if results["dataset"] == "mnist" else 64)
        for fit in (normal, mixture, vamp):
            assert fit["elbo"] < fit["log_prob"] < 0 < fit["kl"]
            assert fit["active"] > 0
    assert vamp["log_prob"] > normal["log_prob"] + 0.5


def test_disentanglement(quick):
    for results in both(quick, "disentanglement"):
        for fit in results["fits"]:
            parts = sum(fit[name] for name in ("mutual_information", "total_correlation", "dimension_wise_kl"))
            assert parts == pytest.approx(sum(fit["kl_of_latent"]), rel=0.1)
            assert all(-0.01 < share < 1.01 for row in fit["information"] for share in row)
            assert all(0.0 <= gap < 1.01 for gap in fit["gaps"].values())
        largest = max(fit["beta"] for fit in results["fits"])
        mean = {
            (kind, key): sum(fit[key] for fit in results["fits"] if (fit["kind"], fit["beta"]) == (kind, largest)) / results["seeds"]
            for kind in ("beta", "tc")
            for key in ("log_likelihood", "mig")
        }
        assert mean["tc", "log_likelihood"] > mean["beta", "log_likelihood"]
        assert mean["tc", "mig"] > mean["beta", "mig"]


def test_information_of_a_latent_that_is_the_factor_or_has_nothing_of_it(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    information = importlib.import_module("disentanglement").information
    torch.manual_seed(0)
    factor, of = torch.arange(5).repeat(200), torch.randperm(1000)
    logvar = torch.full((1000,), -4.0)
    for mu, expected in ((10.0 * factor, torch.tensor(5.0).log().item()), (10.0 * torch.arange(1000).div(500, rounding_mode="floor"), 0.0)):
        z = mu[of] + torch.randn(1000) * (0.5 * logvar).exp()
        ((found, entropy),) = information(z, mu, logvar, of, factor[:, None])
        assert found == pytest.approx(expected, abs=1e-4)
        assert entropy == pytest.approx(torch.tensor(5.0).log().item(), rel=1e-6)


def test_large_mixture(quick):
    for results in both(quick, "large_mixture"):
        curve = [log_p for _, log_p in results["curve"]]
        assert curve == sorted(curve)
        assert results["gaussian_log_likelihood"] < results["fit"]["test_log_likelihood"] < results["true_log_likelihood"]
        assert 0 < results["most_anonymous_bytes"] < 2 * 2**30
    assert results["rows"] >= 20_000_000
    assert results["components"] == 1000
    assert results["processes"] == 2


def test_vae_inference(quick):
    for results in both(quick, "vae_inference"):
        for gap in results["gaps"]:
            assert gap["elbo"] < gap["elbo_refined"] < gap["log_prob"]
            assert gap["amortisation"] + gap["approximation"] == pytest.approx(gap["log_prob"] - gap["elbo"], abs=1e-9)
            assert gap["log_prob_by_encoder"] < gap["log_prob"] + 0.05  # the better proposal, the tighter bound
        rows = results["restored"]
        assert len(rows) == 14
        for damage in {row["damage"] for row in rows}:
            guesses = [row for row in rows if row["damage"] == damage]
            assert guesses[-1]["method"] == "importance samples from a refined q"
            assert guesses[-1]["rmse"] < guesses[1]["rmse"]  # than what the encoder alone makes of it
            assert 1.0 <= guesses[-1]["effective_samples"] <= results["samples"]
    assert all(guesses[-1]["read"] > guesses[0]["read"] for guesses in (rows[:5], rows[5:10]))


def test_inference_sees_what_it_is_given(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("vae_inference")
    x, logits = torch.bernoulli(torch.full((5, 12), 0.5)), torch.randn(3, 5, 12)
    mask = (torch.rand(5, 12) < 0.5).float()
    p = logits.double().sigmoid()
    white = module.FLIPPED * (1.0 - p) + (1.0 - module.FLIPPED) * p
    for seen, probability in ((module.all_of(x), p), (module.noise_of(x), white)):
        expected = torch.where(x > 0, probability, 1.0 - probability).log().sum(-1)
        torch.testing.assert_close(seen(logits).double(), expected, rtol=1e-5, atol=1e-5)
    expected = (torch.where(x > 0, p, 1.0 - p).log() * mask).sum(-1)
    torch.testing.assert_close(module.part_of(x, mask)(logits).double(), expected, rtol=1e-5, atol=1e-5)


def test_denoising(quick):
    for results in both(quick, "denoising"):
        plane = results["plane"]
        assert plane["rmse_posterior_mean"] < plane["rmse_restored"] < plane["rmse_noisy"]
        assert plane["rms_from_posterior_mean"] < 0.5 * plane["rmse_noisy"]
        assert len(results["digits"]["damages"]) == 4
        for row in results["digits"]["damages"]:
            assert row["error_restored"] < row["error_damaged"]
    for row in results["digits"]["damages"]:
        assert row["read_restored"] > row["read_damaged"]


def test_probability(quick):
    for results in both(quick, "probability"):
        discrete, estimates = results["discrete"], results["monte_carlo"]
        assert discrete["cross_entropy_minus_entropy_minus_kl"] < 1e-12
        assert discrete["information_minus_entropy_difference"] < 1e-12
        for rule in ("product_rule", "bayes_rule", "conditionals_sum_to_one", "information_of_independent", "entropy_of_delta"):
            assert discrete[rule] < 1e-12
        assert discrete["information_of_itself_minus_entropy"] < 1e-12
        assert 0.0 < discrete["share_kl_longer_than_detour"] < 0.5
        assert max(results["decoders"].values()) < 1e-5
        likely, small = results["maximum_likelihood"], results["minibatches"]
        assert likely["gradient_of_kl_at_moments"] < 1e-9
        assert likely["kl_above_least"] == sorted(likely["kl_above_least"], reverse=True)
        assert likely["slope"] == pytest.approx(-1.0, abs=0.25)
        assert small["largest_bias_in_standard_errors"] < 4.0
        assert small["slope"] == pytest.approx(-1.0, abs=0.05)
        assert discrete["least_kl"] >= 0.0 == discrete["kl_of_p_and_p"]
        assert discrete["greatest_entropy"] <= discrete["entropy_of_uniform"] + 1e-6
        assert results["bernoulli"]["at"] == pytest.approx(0.5)
        assert estimates["slope"] == pytest.approx(-1.0, abs=0.05)
        assert estimates["kl_closed_form"] == pytest.approx(estimates["kl_quadrature"], rel=1e-5)
        assert estimates["means"][-1] == pytest.approx(estimates["kl_closed_form"], abs=0.002)


def test_faces(quick):
    for results in both(quick, "faces"):
        scores = [fit["test_log_likelihood"] for fit in results["fits"]]
        assert scores[0] < scores[1] < scores[2]
        shares = list(results["share_of_variance"].values())
        assert 0.0 < shares[0] < shares[-1] < 1.0
    assert results["dataset"] == "frey"


def test_pixels(quick):
    for results in both(quick, "pixels"):
        independent, markov, network = results["fits"]
        assert independent["parameters"] == results["pixels"]
        assert markov["parameters"] == 2 * results["pixels"] - 1
        assert independent["test_log_likelihood"] < markov["test_log_likelihood"] < network["test_log_likelihood"]
        assert list(results["total_probability"].values()) == pytest.approx([1.0] * 3, abs=1e-5)


def test_autoregressive_network_sees_earlier_pixels_only(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    model = importlib.import_module("pixels").Autoregressive(12, 40)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], torch.rand(12))
    assert torch.equal(jacobian.triu(), torch.zeros(12, 12))
    assert bool((jacobian.tril(-1) != 0).sum() == 12 * 11 // 2)


def test_infinite_mixture(quick):
    for results in both(quick, "infinite_mixture"):
        fits = {fit["model"]: fit for fit in results["fits"]}
        neural = fits["neural infinite mixture, by 16 samples"]
        assert results["mass"] == pytest.approx(1.0, abs=2e-3)
        assert results["elbo"] < results["bound_100"] < neural["test_log_likelihood"] + 0.01
        assert neural["kl_from_truth"] < fits["one Gaussian"]["kl_from_truth"]
        assert fits["true density"]["kl_from_truth"] == pytest.approx(0.0, abs=1e-6)
        assert fits["true density"]["test_log_likelihood"] > neural["test_log_likelihood"]
    assert neural["kl_from_truth"] < fits["uniform infinite mixture"]["kl_from_truth"]


def test_evidence(quick):
    for results in both(quick, "evidence"):
        for row in results["identity"]:
            assert row["largest_difference"] < 1e-5
            assert row["elbo"] + row["kl"] == pytest.approx(row["evidence"], abs=1e-5)
            assert row["sampled_elbo"] == pytest.approx(row["elbo"], abs=0.1)
        prior, trained, best = (row["elbo"] for row in results["identity"])
        assert prior < trained < best
        assert results["bounds"] == sorted(results["bounds"])
        assert min(results["gaps"]) > 0.0
        assert results["slope"] == pytest.approx(-0.9, abs=0.25)


def run_bayesian(out, name="bayesian_neural_networks", **environment):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*environment.values(), str(EXAMPLES.parent)])}
    return interpreters.run(EXAMPLES / f"{name}.py", "--quick", "--out", out, environment=environment)


def test_bayesian_neural_networks(tmp_path):
    """In a process of its own: Pyro changes torch.distributions when it is imported."""
    if importlib.util.find_spec("pyro") is None:
        pytest.skip("Pyro is not installed")
    done = run_bayesian(tmp_path)
    assert done.returncode == 0, done.stderr
    for results in (json.loads((tmp_path / "bayesian_neural_networks.json").read_text()), committed("bayesian_neural_networks")):
        one, _, hmc = results["regression"]["fits"]
        assert hmc["test_log_likelihood"] > one["test_log_likelihood"]  # "in simple tasks"
        assert hmc["within_95"] > one["within_95"]
        assert all(fit["error_rate"] < 0.25 for fit in results["classification"]["fits"])
    assert results["regression"]["r_hat_median"] < 1.05


def test_metropolis_hastings(tmp_path):
    if importlib.util.find_spec("pyro") is None:
        pytest.skip("Pyro is not installed")
    done = run_bayesian(tmp_path, "metropolis_hastings")
    assert done.returncode == 0, done.stderr
    for results in (json.loads((tmp_path / "metropolis_hastings.json").read_text()), committed("metropolis_hastings")):
        fits = [fit for fit in results["fits"] if fit["method"] == "mh"]
        assert len(fits) == results["sets"]
        assert all(fit["accepted"] == pytest.approx(results["accepted"], abs=0.1) for fit in fits)
        assert all(curve[0] == pytest.approx(1.0, abs=1e-5) for curve in results["autocorrelation"].values())
    assert all(fit["error_rate"] < 0.3 for fit in results["fits"])
    assert all(fit["leapfrog_least"] >= 5 for fit in results["fits"] if fit["method"] == "hmc")  # a trajectory, not a random walk


def test_a_walk_draws_from_its_density(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.syspath_prepend(EXAMPLES)
    torch.manual_seed(0)
    scale = torch.tensor([0.5, 1.0, 2.0])
    problem = SimpleNamespace(size=3, log_joint=lambda theta: -0.5 * ((theta - 1.0) / scale).square().sum(-1))
    drawn, accepted = importlib.import_module("metropolis_hastings").walk(problem, 500, 500, 10, 50)
    assert drawn.shape == (50, 500, 3)
    assert accepted == pytest.approx(0.234, abs=0.03)
    torch.testing.assert_close(drawn.mean((0, 1)), torch.ones(3), atol=0.06, rtol=0.0)
    torch.testing.assert_close(drawn.flatten(0, 1).std(0), scale, rtol=0.05, atol=0.0)


def test_bayesian_neural_networks_say_what_is_missing(tmp_path):
    (tmp_path / "pyro.py").write_text("raise ModuleNotFoundError(name='pyro')\n")
    done = run_bayesian(tmp_path / "out", hidden=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: Hamiltonian Monte Carlo needs Pyro: install it with")


def test_quick_pictures_are_drawn(quick):
    """Those that the pages show, and no other."""
    shown = set()
    for name in NAMES:
        quick(name)
        shown |= set(re.findall(r"\]\(pictures/(\w+\.png)\)", sys.modules[name].section(committed(name))))
    pictures = list(quick.out.glob("*.png"))
    assert {path.name for path in pictures} == shown
    assert all(imread(path)[..., :3].std() > 0.05 for path in pictures)


def test_samples_per_image(quick):
    for results in both(quick, "sgvb"):
        of = {(g["name"], g["samples"]): g for g in results["gradients"]}
        for kl in ("analytic", "sampled"):
            assert of[kl, 1]["variance"] == of[kl, 1]["variance_all_images"]  # M = 100 / 1
            assert of[kl, 1]["variance"] < of[kl, 10]["variance"] < of[kl, 100]["variance"]  # fewer images
            assert of[kl, 25]["variance_all_images"] < of[kl, 1]["variance"]  # more samples of as many images
        assert of["analytic", 1]["variance"] < of["sampled", 1]["variance"]
        ends = [t["test_loss"] for t in results["trained"]]
        assert ends[0] < ends[-1]


def test_thesis_listings(quick):
    for results in both(quick, "thesis_listings"):
        assert all(0.2 < each[0] < each[-1] for each in results["shares"])
        assert len(results["shares"]) == 5
    assert all(0.91 < each[-1] < 0.925 for each in results["shares"])
    means = [sum(v) / len(v) for v in results["loss_before_training"].values()]
    assert all(540.0 < mean < 600.0 for mean in means)


def test_convolutional_vae(quick):
    for results in both(quick, "convolutional_vae"):
        for fit in results["fits"]:
            assert -fit["test_loss"] < fit["test_log_prob"]
        few, many = ([f for f in results["fits"] if f["images"] == n] for n in sorted({f["images"] for f in results["fits"]}))
        assert [f["name"] for f in few] == [f["name"] for f in many] == ["narrow", "wide", "conv"]
        assert all(a["test_log_prob"] < b["test_log_prob"] for a, b in zip(few, many, strict=True))


def test_importance_weighted(quick):
    """Nearer to log p(x) with more samples in the loss, as in the paper's table; the committed run is at its beginning."""
    for results in both(quick, "importance_weighted"):
        fits = {fit["samples"]: fit for fit in results["fits"]}
        assert list(fits) == [1, 5, 50]
        for fit in fits.values():
            assert 0 < fit["curve"][-1][0] <= fit["passes"]
            assert fit["curve"][-1][1] >= fit["curve"][0][1]
            assert fit["bound"] < fit["log_prob"] + 4 * fit["standard_error"]
            assert 0 < fit["drawing"]["share"] < 0.5
        assert fits[1]["own_bound"] < fits[1]["bound"]
    bounds = [fit["curve"][-1][1] for fit in quick("importance_weighted")["fits"]]
    assert bounds == sorted(bounds)  # after as many passes each
    assert (results["dataset"], results["train_images"], results["test_images"], results["samples"]) == ("mnist", 60_000, 10_000, 5000)
    assert (results["hidden"], results["latent"], results["batch"]) == (200, 50, 20)
