"""A state dict says with which options its weights were saved, and other options are refused."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deq_organics import ORGaNICsDEQ
from deq_organics.saved_options import SavedOptionsError, SavesOptions, check_saved_options

# Each shapes the function and leaves the names and shapes of the parameters as they are.
OPTIONS = [
    {"exponent": 3.0},
    {"exponent": 2.0000000000000004},
    {"rectified": True},
    {"normalize_drive": False},
    {"max_singular_value": 1.5},
]
LAYOUTS = [
    {"recurrence": "identity"},
    {"recurrence": "unconstrained"},
    {"input_gain": "tied"},
    {"learn_semisaturation": True},
]
ENTRY = "_extra_state"


def layer(**options: Any) -> ORGaNICsDEQ:
    return ORGaNICsDEQ(4, 3, **options)


def without_options(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if ENTRY not in name}


def copies(module: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("options", OPTIONS + LAYOUTS)
def test_other_options_are_refused_and_nothing_is_loaded(
    options: dict[str, Any], strict: bool
) -> None:
    for saved, own in ((layer(**options), layer()), (layer(), layer(**options))):
        before = copies(own)
        (name,) = options
        there, here = (module.shaping_options()[name] for module in (saved, own))
        with pytest.raises(ValueError, match=f"{name}: saved with {there!r}, here {here!r}"):
            own.load_state_dict(saved.state_dict(), strict=strict)
        assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_every_difference_is_named_at_once() -> None:
    with pytest.raises(SavedOptionsError) as caught:
        layer().load_state_dict(layer(exponent=1.5, rectified=True).state_dict())
    message = str(caught.value)
    assert "exponent: saved with 1.5, here 2.0; rectified: saved with True, here False" in message
    assert "normalize_drive" not in message
    # Like torch's own refusals, for those who catch them.
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, *OPTIONS, *LAYOUTS])
@pytest.mark.parametrize("assign", [False, True])
def test_the_same_options_load_without_a_word(options: dict[str, Any], assign: bool) -> None:
    saved, own = layer(**options), layer(**options)
    found = own.load_state_dict(saved.state_dict(), assign=assign)
    assert not found.missing_keys
    assert not found.unexpected_keys
    x = torch.randn(5, 4)
    assert torch.equal(saved(x), own(x))


def test_an_option_without_effect_is_not_compared() -> None:
    saved = layer(recurrence="identity", max_singular_value=2.0)
    layer(recurrence="identity").load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    "travel",
    [
        lambda state: load(save(state)),
        lambda state: {name: value.half() for name, value in state.items()},
        lambda state: {name: value.bfloat16() for name, value in state.items()},
        lambda state: {name: value.double() for name, value in state.items()},
        lambda state: _through_a_file(state),
    ],
    ids=["safetensors", "float16", "bfloat16", "float64", "weights_only"],
)
def test_options_survive_travel(travel: Callable[..., Any]) -> None:
    state = travel(layer(exponent=1.3).state_dict())
    layer(exponent=1.3).load_state_dict(state)
    with pytest.raises(ValueError, match=r"exponent: saved with 1\.3, here 2\.0"):
        layer().load_state_dict(state)


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_state_dict_without_options_loads_and_says_so() -> None:
    saved, own = layer(), layer()
    with pytest.warns(UserWarning, match=r"not checked: .*exponent.*rectified") as caught:
        found = own.load_state_dict(without_options(saved.state_dict()), strict=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not found.missing_keys
    assert torch.equal(own.input_weight, saved.input_weight)


def test_nested_layers_are_named() -> None:
    saved = nn.Sequential(nn.Linear(4, 4), layer(), layer(exponent=3.0, recurrence="identity"))
    own = nn.Sequential(nn.Linear(4, 4), layer(), layer(recurrence="identity"))
    last: Any = own[2]
    before = last.input_weight.detach().clone()
    with pytest.raises(ValueError, match=r"\(2\.exponent: saved with 3\.0, here 2\.0\)"):
        own.load_state_dict(saved.state_dict())
    assert torch.equal(last.input_weight, before)
    # Beforehand for the whole model:
    with pytest.raises(ValueError, match=r"of this Sequential \(2\.exponent"):
        check_saved_options(own, saved.state_dict())


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, AveragedModel, lambda m: nn.ModuleDict({"a": m})]
)
def test_wrapped(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrap(layer()).load_state_dict(wrap(layer()).state_dict())
    with pytest.raises(ValueError, match="exponent: saved with"):
        wrap(layer()).load_state_dict(wrap(layer(exponent=3.0)).state_dict())


def test_a_part_of_a_model_may_be_loaded() -> None:
    """Not a word about layers of which nothing is loaded."""
    model: Any = nn.Sequential(nn.Linear(4, 4), layer())
    model.load_state_dict({"0.weight": torch.zeros(4, 4)}, strict=False)
    assert (model[0].weight == 0).all()


class Inner(SavesOptions):
    def __init__(self, kind: str, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(2))
        self.inner = inner

    def shaping_options(self) -> dict[str, Any]:
        return {"kind": self.kind, "number": 0.1, "flag": True, "none": None, "int": 3}


def test_modules_with_options_inside_one_are_compared_first() -> None:
    saved, own = Inner("a", Inner("b")), Inner("a", Inner("c"))
    before = copies(own)
    with pytest.raises(ValueError, match=r"of this Inner \(inner\.kind: saved with 'b', here 'c'"):
        own.load_state_dict(saved.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with pytest.warns(UserWarning, match=r"kind.*inner\.kind") as caught:
        own.load_state_dict(without_options(saved.state_dict()))
    assert len(caught) == 1


@pytest.mark.parametrize(
    "entry", [{"exponent": 2}, torch.tensor([1, 2]), torch.tensor([300.0]), "exponent", [1]]
)
def test_an_entry_that_is_none(entry: object) -> None:
    with pytest.raises(ValueError, match=r"^0\._extra_state: got "):
        nn.Sequential(layer()).load_state_dict(
            {**nn.Sequential(layer()).state_dict(), f"0.{ENTRY}": entry}
        )


def test_options_of_a_later_version() -> None:
    entry = torch.tensor(list(b'{"exponent": 2.0, "novelty": 7}'))
    with pytest.raises(ValueError, match=r"novelty: saved with 7, here no such option"):
        layer().load_state_dict({**layer().state_dict(), ENTRY: entry})


@pytest.mark.parametrize("how", ["argument", "context"])
def test_meta(how: str) -> None:
    saved = layer(exponent=3.0)
    with torch.device("meta" if how == "context" else "cpu"):
        own = layer(exponent=3.0, **({"device": "meta"} if how == "argument" else {}))
        other = layer(device="meta")
        assert own.state_dict()[ENTRY].device.type == "cpu"
    own.load_state_dict(saved.state_dict(), assign=True)
    x = torch.randn(2, 4)
    assert torch.equal(own(x), saved(x))
    with pytest.raises(ValueError, match="exponent: saved with"):
        other.load_state_dict(saved.state_dict(), assign=True)
    assert other.input_weight.is_meta
    # A state dict on meta has no values, so that there is nothing to compare.
    state = {name: value.to("meta") for name, value in saved.state_dict().items()}
    with pytest.warns(UserWarning, match="not checked"):
        other.load_state_dict(state, assign=True)


def test_all_entries_are_tensors_and_the_callers_dict_stays() -> None:
    state = layer().state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    assert state[ENTRY].dtype == torch.uint8
    bare = without_options(state)
    names = list(bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer().load_state_dict(bare)
    assert list(bare) == names
