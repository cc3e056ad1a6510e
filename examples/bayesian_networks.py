"""A Bayesian network of five discrete variables: its joint by factors, every posterior by enumeration, and what fewer parameters are worth.

    python examples/bayesian_networks.py [--quick] [--out DIR]

The lecture deck's student: difficulty D and intelligence I, grade G given both, test score S given I, letter L given G; with the
probabilities of Koller and Friedman (2009), figure 3.4. Writes bayesian_networks.png and bayesian_networks.json.
"""

import math
from typing import Any

import torch
from _common import finish, options, save, table
from matplotlib.figure import Figure
from torch import Tensor

import vae_fast

#: Each variable's parents and p(variable | parents), the variable itself in the last dimension.
NETWORK = {
    "D": ("", [0.6, 0.4]),
    "I": ("", [0.7, 0.3]),
    "G": ("ID", [[[0.3, 0.4, 0.3], [0.05, 0.25, 0.7]], [[0.9, 0.08, 0.02], [0.5, 0.3, 0.2]]]),
    "S": ("I", [[0.95, 0.05], [0.2, 0.8]]),
    "L": ("G", [[0.1, 0.9], [0.4, 0.6], [0.99, 0.01]]),
}
ORDER = "".join(NETWORK)
VALUES = {
    "D": ("easy", "hard"),
    "I": ("low intelligence", "high intelligence"),
    "G": ("grade A", "grade B", "grade C"),
    "S": ("low score", "high score"),
    "L": ("weak letter", "strong letter"),
}
#: The questions asked: a variable, its value, what is known.
QUESTIONS = (
    ("L", 1, {}),
    ("L", 1, {"I": 0}),
    ("L", 1, {"I": 0, "D": 0}),
    ("I", 1, {}),
    ("I", 1, {"G": 2}),
    ("I", 1, {"G": 2, "S": 1}),
    ("I", 1, {"G": 2, "D": 1}),
    ("D", 1, {"G": 2}),
    ("D", 1, {"G": 2, "S": 1}),
)
#: The deck's: A is independent of B given C.
INDEPENDENCES = (("D", "I", ""), ("S", "DG", "I"), ("L", "IDS", "G"))
Factors = dict[str, Tensor]


def joint_of(factors: Factors) -> Tensor:
    """p(d, i, g, s, l) = p(d) p(i) p(g | i, d) p(s | i) p(l | g), in the order of ``ORDER``."""
    terms = ",".join(NETWORK[v][0] + v for v in ORDER)
    return torch.einsum(f"{terms}->{ORDER}", *(factors[v] for v in ORDER))


def marginal(joint: Tensor, variables: str) -> Tensor:
    """p of some variables, in the order given: the others are summed out."""
    return torch.einsum(f"{ORDER}->{variables}", joint)


def posterior(joint: Tensor, variable: str, known: dict[str, int]) -> Tensor:
    """p(variable | known) by enumeration: the entries that agree with what is known, summed and normalised."""
    agreeing = joint[tuple(known.get(v, slice(None)) for v in ORDER)]
    left = "".join(v for v in ORDER if v not in known)
    weights = torch.einsum(f"{left}->{variable}", agreeing)
    return weights / weights.sum()


def dependence(joint: Tensor, a: str, b: str, given: str) -> float:
    """I(A; B | C) in nats: 0 if and only if A is independent of B given C."""
    abc, ac, bc, c = (marginal(joint, v) for v in (a + b + given, a + given, b + given, given))
    entropies = [torch.special.entr(p).sum().item() for p in (ac, bc, abc, c if given else torch.ones(()))]
    return entropies[0] + entropies[1] - entropies[2] - entropies[3]


def parameters(variables: str = ORDER) -> int:
    """Free numbers of the factors: for each setting of the parents one fewer than the values of the variable."""
    return sum(math.prod(len(VALUES[p]) for p in NETWORK[v][0]) * (len(VALUES[v]) - 1) for v in variables)


def draw(factors: Factors, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Ancestral sampling: parents first."""
    drawn: dict[str, Tensor] = {}
    for v in ORDER:
        rows = factors[v][tuple(drawn[p] for p in NETWORK[v][0])].expand(n, -1)
        drawn[v] = torch.multinomial(rows, 1, generator=generator).squeeze(1)
    return drawn


def learn(drawn: dict[str, Tensor], n: int, prior: float = 0.5) -> tuple[Factors, Tensor]:
    """Factors, and the full table, from the first n draws by counting, with ``prior`` pseudo-counts for every value."""

    def frequencies(variables: str) -> Tensor:
        counts = torch.full([len(VALUES[v]) for v in variables], prior, dtype=torch.float64)
        counts.index_put_(tuple(drawn[v][:n] for v in variables), torch.ones(n, dtype=torch.float64), accumulate=True)
        return counts

    factors = {}
    for v in ORDER:
        counts = frequencies(NETWORK[v][0] + v)
        factors[v] = counts / counts.sum(-1, keepdim=True)
    table = frequencies(ORDER)
    return factors, table / table.sum()


def log_likelihood(factors: Factors, drawn: dict[str, Tensor]) -> float:
    """Mean log p of draws, one categorical likelihood for each factor: logits are looked up at the parents' values."""
    total = 0.0
    for v in ORDER:
        n = len(drawn[v])
        logits = factors[v].log()[tuple(drawn[p] for p in NETWORK[v][0])].expand(n, -1)
        total += vae_fast.categorical_log_prob(drawn[v], logits, event_dim=0).mean().item()
    return total


def asked(variable: str, value: int, known: dict[str, int]) -> str:
    """A question in words."""
    given = ", ".join(VALUES[v][k] for v, k in known.items())
    return VALUES[variable][value] + (f", given {given}" if given else "")


def main() -> None:
    """Compute, print, draw."""
    args = options(__doc__)
    factors = {v: torch.tensor(p, dtype=torch.float64) for v, (_, p) in NETWORK.items()}
    joint = joint_of(factors)
    answers = [
        {"name": asked(*question), "probability": posterior(joint, question[0], question[2])[question[1]].item()} for question in QUESTIONS
    ]
    independent = [{"name": " | ".join(filter(None, (f"{a}; {b}", c))), "nats": dependence(joint, a, b, c)} for a, b, c in INDEPENDENCES]
    independent.append({"name": "D; I | G", "nats": dependence(joint, "D", "I", "G")})

    generator = torch.Generator().manual_seed(args.seed)
    repeats, held = (20, 2000) if args.quick else (200, 20_000)
    sizes = [10 * 2**i for i in range(9)]
    test = draw(factors, held, generator)
    divergence = {"network": [0.0] * len(sizes), "table": [0.0] * len(sizes)}
    for _ in range(repeats):
        drawn = draw(factors, sizes[-1], generator)
        for i, n in enumerate(sizes):
            learned, full = learn(drawn, n)
            for name, other in (("network", joint_of(learned)), ("table", full)):
                divergence[name][i] += (joint * (joint / other).log()).sum().item() / repeats
    results: dict[str, Any] = {
        "states": joint.numel(),
        "total": joint.sum().item(),
        "parameters": parameters(),
        "parameters_of_the_table": joint.numel() - 1,
        "rgb_table": 256**3 - 1,
        "rgb_independent": 3 * 255,
        "answers": answers,
        "mutual_information": independent,
        "entropy": torch.special.entr(joint).sum().item(),
        "test_log_likelihood": log_likelihood(factors, test),
        "test_draws": held,
        "repeats": repeats,
        "sizes": sizes,
        "divergence": divergence,
    }
    for answer in answers:
        print(f"{answer['name']}: {answer['probability']:.4f}")
    for row in independent:
        print(f"I({row['name']}) = {row['nats']:.2e}")
    print(f"{parameters()} parameters, the table {joint.numel() - 1}; test log-likelihood {results['test_log_likelihood']:.4f}")

    figure = Figure(figsize=(10.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
    names = [answer["name"].replace(", given ", "\ngiven ") for answer in answers]
    left.barh(names[::-1], [answer["probability"] for answer in answers][::-1], color="#1f5fa8", height=0.62)
    for place, answer in enumerate(reversed(answers)):
        left.text(answer["probability"] + 0.012, place, f"{answer['probability']:.3f}", va="center", fontsize="small")
    left.set(xlim=(0.0, 0.8), xlabel="probability")
    left.tick_params(axis="y", labelsize="small", length=0)
    expected = {"network": parameters(), "table": joint.numel() - 1}
    for name, colour, label in (("network", "#1f5fa8", "by factors"), ("table", "#d9772b", "full table")):
        right.loglog(sizes, divergence[name], "o-", color=colour, label=f"{label}, {expected[name]} parameters")
        right.loglog(sizes, [expected[name] / (2 * n) for n in sizes], color=colour, linestyle=":", linewidth=1.2)
    right.set(xlabel="draws learned from", ylabel="KL from the true joint, nats")
    right.legend(frameon=False, fontsize="small", title="dotted: parameters / (2 draws)", title_fontsize="small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "bayesian_networks.png")
    finish(args, results, ("bayesian_networks.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    rows = [[answer["name"], f"{answer['probability']:.3f}"] for answer in r["answers"]]
    *zero, given_grade = r["mutual_information"]
    ratio = [t / n for n, t in zip(r["divergence"]["network"], r["divergence"]["table"], strict=True)]
    return f"""\
## A Bayesian network: `{r["command"]}`

The probabilistic modelling lecture deck's student: p(d, i, g, s, l) = p(d) p(i) p(g | i, d) p(s | i) p(l | g), with the probabilities of
Koller and Friedman (2009, figure 3.4). {r["states"]} states, whose probabilities sum to {r["total"]:.12f}: {r["parameters"]} parameters by
factors, {r["parameters_of_the_table"]} in a full table. (The deck's other table, of one RGB pixel, needs {r["rgb_table"]:,}, and
{r["rgb_independent"]} if the channels are independent.) Posteriors by enumeration:

{table(["probability of", "p"], rows)}

A low grade speaks against intelligence, a high test score or a hard course explains it away. The deck's independences hold (largest
mutual information {max(abs(row["nats"]) for row in zero):.0e} nats), and D and I, which are independent, are not once the grade is known:
I({given_grade["name"]}) = {given_grade["nats"]:.3f}. {r["test_draws"]:,} draws (parents first) have the mean log-likelihood
{r["test_log_likelihood"]:.3f} (`vae_fast.categorical_log_prob`, a call for each factor), and minus the entropy of the joint is
{-r["entropy"]:.3f}.

*Fewer parameters need less data*: learned by counting (half a pseudo-count for every value), means over {r["repeats"]} data sets, the table
is {ratio[0]:.1f} times further from the truth than the network after {r["sizes"][0]} draws and {ratio[-1]:.1f} times after
{r["sizes"][-1]:,}; with many draws either costs its number of parameters divided by twice the draws.

![Posteriors; divergence against draws](pictures/bayesian_networks.png)
"""


if __name__ == "__main__":
    main()
