"""The part of an estimator that scikit-learn's tools look for and that has nothing to do with mixtures."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import nn

from vae_fast.errors import NotFittedError
from vae_fast.functional import _arguments as check

if TYPE_CHECKING:
    from typing_extensions import Self


RandomState = int | torch.Generator | np.random.RandomState | np.random.Generator | None


class Estimator(nn.Module):
    """A module whose constructor arguments are its hyperparameters, each an attribute of the same name."""

    _learned: frozenset[str] = frozenset()

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor arguments by name; ``deep`` is there for scikit-learn and changes nothing."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; they take effect with the next fit.

        Raises:
            ValueError: for a name that is not one of them.
        """
        names = self._parameter_names()
        for name, value in params.items():
            if name not in names:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(names)}")
            self._store(name, value)
        return self

    def _store(self, name: str, value: Any) -> None:
        """Keep a constructor argument as it is, NumPy's scalars as Python's."""
        setattr(self, name, value.item() if isinstance(value, np.generic) else value)

    def __getattr__(self, name: str) -> Any:
        """What is neither there nor a parameter: a result of a fit that has not been made says so."""
        if name in type(self)._learned:
            self._not_fitted(name)
        return super().__getattr__(name)

    def _not_fitted(self, what: str) -> NoReturn:
        raise _not_fitted_error()(
            f"{what}: not there yet: call fit or partial_fit, load a state_dict, or build {type(self).__name__} with n_features to use it "
            "as a module"
        )

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of a density estimator; only scikit-learn calls this, so it is there."""
        utils = sys.modules["sklearn.utils"]
        return utils.Tags(
            estimator_type="density_estimator",
            target_tags=utils.TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=None,
        )


def _not_fitted_error() -> type[NotFittedError]:
    """Ours; once scikit-learn is there, one that is scikit-learn's too, for code that catches that."""
    exceptions = sys.modules.get("sklearn.exceptions")
    return NotFittedError if exceptions is None else type("NotFittedError", (NotFittedError, exceptions.NotFittedError), {})


def check_random_state(random_state: RandomState) -> None:
    """Refuse anything but None, a seed that torch takes, and generators.

    Raises:
        TypeError, ValueError: naming random_state, the value given and what was expected.
    """
    if random_state is None or isinstance(random_state, torch.Generator | np.random.RandomState | np.random.Generator):
        return
    if isinstance(random_state, bool) or not isinstance(random_state, int):
        raise TypeError(f"random_state={check.shown(random_state)}: expected None, an int, a torch.Generator or a NumPy generator")
    check.seed("random_state", random_state)


def generator_of(random_state: RandomState, device: torch.device) -> torch.Generator | None:
    """A generator on ``device``: None is torch's own; an int starts anew; others go on where they are."""
    check_random_state(random_state)
    if random_state is None:
        return None
    if isinstance(random_state, torch.Generator):
        if random_state.device.type == device.type:
            return random_state
        seed = int(torch.randint(2**63 - 1, (), generator=random_state, device=random_state.device))
    elif isinstance(random_state, np.random.RandomState):
        seed = int(random_state.randint(2**31 - 1))
    elif isinstance(random_state, np.random.Generator):
        seed = int(random_state.integers(2**63 - 1))
    else:
        seed = int(random_state)
    return torch.Generator(device).manual_seed(seed)
