"""Causal language models as `transformers` saves them, in the stages of `stages`.

A checkpoint is a folder with config.json and model.safetensors, or shards of it with an index, as
`save_pretrained` writes it, or a repository of such files on the hub. `transformers` makes the
modules; the weights are mapped privately from the files, and no code of the checkpoint's is run.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nodes.workload import saved
from nodes.workload.saved import CONFIG
from nodes.workload.text import passes, token_files
from nodes.workload.text.layouts import LAYOUTS, roles
from nodes.workload.text.stages import Attended, Block, CausalModel, CausalSpec, Embed, Head
from nodes.workload.text.tokens import TransformersEncoder, no_panic
from testbed.config_error import ConfigError, excerpt

LANGUAGE = re.compile(r"\w+(ForCausalLM|LMHeadModel)")
"""Classes of language models, as config.json names them."""
OF_CLASSES = ("id2label", "label2id", "num_labels", "problem_type")
"""Fields that are of classifiers alone; a name would be made for each of a billion labels."""
OF_OUTPUTS = ("return_dict", "output_hidden_states", "output_attentions", "torchscript")
"""Fields of what a pass gives beside logits and in which form, which is nothing of the model."""
SLIDING = "sliding_attention"
"""Kind of a layer whose tokens see a window."""
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)")
"""What older files have among their weights and is none."""
CHECKED = 64
"""Tokens at most on which the stages are held against the model's own forward pass. Of fewer some
kernels give finite logits where a longer sequence's are not."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of logits, as a share of the largest, by the dtypes that models are trained in: float16, whose
range is too small for that, becomes float32."""


def is_causal(folder: Path) -> bool:
    """Whether a checkpoint is a causal language model, by what its config.json says."""
    config = saved.read(str(folder), folder / CONFIG)
    named = config.get("architectures")
    classes = named if isinstance(named, list) else []
    return config.get("model_type") in tuple(LAYOUTS) or any(
        isinstance(each, str) and LANGUAGE.fullmatch(each) for each in classes
    )


def architecture(name: str, folder: Path) -> CausalSpec:
    """The sizes that config.json states. ConfigError for a model that is not known to be whole."""
    return _spec(name, _config(name, folder))


def _config(name: str, folder: Path) -> dict[str, Any]:
    config = saved.read_config(name, folder)
    if "auto_map" in config:
        raise ConfigError(
            f"model = {name!r}: auto_map in its {CONFIG}: it asks for code of its own, which is "
            "never run; where transformers has the same model, take auto_map out of a copy"
        )
    if (model_type := config.get("model_type")) not in tuple(LAYOUTS):
        raise ConfigError(
            f"model = {name!r}: model_type = {model_type!r} in its {CONFIG}; known language models "
            f"are {', '.join(LAYOUTS)}"
        )
    _told(name, config)
    # Before anything is built by its sizes.
    _spec(name, config)
    passes.check_fields(name, config)
    return {
        field: value for field, value in config.items() if field not in (*OF_CLASSES, *OF_OUTPUTS)
    }


def _spec(name: str, config: dict[str, Any]) -> CausalSpec:
    layout = LAYOUTS[config["model_type"]]
    told = {field: config.get(field) for field in layout.sizes}
    if (context := layout.sizes.context) not in config:
        told[context] = _usual(config["model_type"], context)
    found = {
        ours: saved.size(
            name, field, told[field], saved.MOST_BLOCKS if ours == "depth" else saved.MOST
        )
        for ours, field in layout.sizes._asdict().items()
    }
    if found["width"] < found["heads"]:
        raise ConfigError(
            f"model = {name!r}: {layout.sizes.width} = {found['width']} in its {CONFIG}; must be "
            f"at least {layout.sizes.heads} = {found['heads']}"
        )
    tied = config.get("tie_word_embeddings", layout.tied)
    if not isinstance(tied, bool):
        raise ConfigError(
            f"model = {name!r}: tie_word_embeddings = {tied!r} in its {CONFIG}; must be true or "
            "false"
        )
    return CausalSpec(model_type=config["model_type"], tied=tied, **found)


def _usual(model_type: str, field: str) -> Any:
    """A field's value for a family whose config.json does not have it."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type].__dataclass_fields__[field].default


def encoder(name: str, folder: Path) -> TransformersEncoder:
    """The tokenizer of a checkpoint, from its tokenizer.json. ConfigError where it has none."""
    from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerFast

    config = _config(name, folder)
    vocabulary = _spec(name, config).vocabulary
    for file in saved.TOKENIZER:
        saved.require(name, folder, file, "what save_pretrained of a fast tokenizer writes")
    token_files.check(name, folder / token_files.FILE)
    try:
        with no_panic():
            found = AutoTokenizer.from_pretrained(
                str(folder),
                config=CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config)),
                local_files_only=True,
                trust_remote_code=False,
            )
            if type(found) is not PreTrainedTokenizerFast:
                # A family's class takes the words of tokenizer.json and splits texts by rules of
                # its own, and the model may have been trained by others.
                names = {each: getattr(found, each) for each in ("bos_token", "eos_token")}
                found = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
                known = found.get_vocab()
                for each, token in names.items():
                    if getattr(found, each) is None and token in known:
                        setattr(found, each, token)
    except Exception as error:  # Each format has errors of its own.
        raise ConfigError(
            f"model = {name!r}: its tokenizer cannot be read: {excerpt(error)}"
        ) from error
    if (largest := max(found.get_vocab().values(), default=0)) >= vocabulary:
        raise ConfigError(
            f"model = {name!r}: its tokenizer has a token {largest}, and those of the model end at "
            f"{vocabulary - 1}; take the tokenizer that it was trained with"
        )
    return TransformersEncoder(found, name)


def skeleton(name: str, folder: Path) -> CausalModel:
    """The model on the meta device: every shape, no values and no memory.

    ConfigError for a model that is not known, or whose configuration `transformers` refuses.
    """
    config = _config(name, folder)
    dtype = _plain(_told(name, config) or torch.float32)
    theirs = _made(name, config, dtype, torch.device("meta"))
    model = _staged(theirs, _spec(name, config))
    passes.check(name, config, theirs, model)
    return model


def check(name: str, folder: Path) -> None:
    """ConfigError where no sequence passes the model in config.json, or the weights are not its.

    Or where one of these is not finite.
    """
    skeleton(name, folder)
    config = _config(name, folder)
    theirs = _made(name, config, torch.float32, torch.device("meta"))
    _Source(name, folder, theirs, tied=_spec(name, config).tied).read()


def build(name: str, folder: Path, dtype: torch.dtype | None = None) -> CausalModel:
    """The model with its weights, mapped from their files where these have the dtype.

    That is ``dtype``, or what config.json says, or the files'; float32 in place of float16.
    Processes share the mapped pages until one writes. Every parameter requires a gradient.

    Raises:
        ConfigError: the checkpoint is not whole, or not what its config.json says.
        ValueError: the stages do not give what the model as a whole gives.
    """
    # Here and not above: its import takes seconds, which models that ship do without.
    from accelerate import init_empty_weights

    config = _config(name, folder)
    spec, told = _spec(name, config), dtype or _told(name, config)
    if told is None:
        told = _plain(_of_files(name, folder))
    theirs = _made(name, config, _plain(told), init_empty_weights(include_buffers=False))
    state = _Source(name, folder, theirs, tied=spec.tied).read()
    theirs.load_state_dict(
        {key: each.to(_plain(told)) for key, each in state.items()}, strict=False, assign=True
    )
    if spec.tied:
        theirs.get_output_embeddings().weight = theirs.get_input_embeddings().weight
    ids = torch.arange(min(CHECKED, spec.context))[None] * 37 % spec.vocabulary
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=torch.ones_like(ids)).logits
    model = _staged(theirs, spec)
    with torch.inference_mode():
        _compare(name, spec, model(ids), expected)
    return model


def _compare(name: str, spec: CausalSpec, found: Tensor, expected: Tensor) -> None:
    """Raises ValueError where the logits of the stages are not the model's."""
    largest, apart = expected.abs().max().item(), (found - expected).abs().max().item()
    if not math.isfinite(largest):
        raise ConfigError(f"model = {name!r}: its weights give logits that are not finite")
    if apart > TOLERANCE[found.dtype] * largest:
        raise ValueError(
            f"model = {name!r}: model_type = {spec.model_type!r}: cut between its blocks, its "
            f"logits are {apart:.3g} from those of the whole, of which the largest is "
            f"{largest:.3g}: its {CONFIG} asks for what stages cannot do"
        )


def _told(name: str, config: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype that config.json states, which older ones call otherwise."""
    field = "dtype" if "dtype" in config else "torch_dtype"
    found = config.get(field)
    if found is None:
        return None
    known = {str(each).removeprefix("torch."): each for each in saved.DTYPES.values()}
    if found not in tuple(known):
        raise ConfigError(
            f"model = {name!r}: {field} = {found!r} in its {CONFIG}; must be one of "
            f"{', '.join(known)}"
        )
    return known[found]


def _plain(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in TOLERANCE else torch.float32


def _of_files(name: str, folder: Path) -> torch.dtype:
    """The dtype of the first matrix in the files."""
    weights = saved.Weights(name, folder)
    return weights.dtype(next(key for key in sorted(weights.files) if key.endswith(".weight")))


def _made(
    name: str, config: Mapping[str, Any], dtype: torch.dtype, empty: AbstractContextManager[Any]
) -> Any:
    """The model of `transformers`, in `empty`, without dropout."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    try:
        kind = CONFIG_MAPPING[config["model_type"]]
        # Null is nothing where a family has no such field. Defaults are written into what is given.
        known = kind.__dataclass_fields__
        given = {key: each for key, each in config.items() if each is not None or key in known}
        own = kind.from_dict(copy.deepcopy(given))
        for field, value in vars(own).items():
            if "drop" in field and isinstance(value, int | float):
                setattr(own, field, 0.0)
        own.use_cache = False
        # Softcapped scores are what the fused kernel does not have.
        capped = "attn_logit_softcapping" in type(own).__dataclass_fields__
        capped = capped and own.attn_logit_softcapping is not None
        with empty:
            return AutoModelForCausalLM.from_config(
                own, attn_implementation="eager" if capped else "sdpa", dtype=dtype
            ).eval()
    except KeyError as error:
        # Of a name that it looks up, such as an activation's, it says no more.
        fields = {**config, **(config.get("rope_scaling") or {})}
        fields |= config.get("rope_parameters") or {}
        named = [f"{key} = {value!r}: " for key, value in fields.items() if error.args == (value,)]
        said = f"{named[0]}it knows no {excerpt(error)}" if named else excerpt(error)
        raise ConfigError(f"model = {name!r}: transformers refuses its {CONFIG}: {said}") from error
    except Exception as error:  # Each field has checks of its own.
        raise ConfigError(
            f"model = {name!r}: transformers refuses its {CONFIG}: {excerpt(error)}"
        ) from error


class _Source:
    """Weights of a model of `transformers`, and what they are called in a checkpoint's files."""

    def __init__(self, name: str, folder: Path, theirs: Any, *, tied: bool) -> None:
        self._name, self._tied = name, tied
        self._weights = saved.Weights(name, folder)
        prefix = f"{theirs.base_model_prefix}."
        whole = any(key.startswith(prefix) for key in self._weights.files)
        modules = {id(module): path for path, module in theirs.named_modules()}
        classifier = f"{modules[id(theirs.get_output_embeddings())]}."
        self._head = f"{LAYOUTS[theirs.config.model_type].head}.weight"
        embedding = f"{modules[id(theirs.get_input_embeddings())]}.weight"
        shapes = {key: tuple(each.shape) for key, each in theirs.named_parameters()}
        if tied:
            shapes.pop(f"{classifier}weight", None)
        self._keys = {key: key if whole else key.removeprefix(prefix) for key in shapes}
        self._keys |= {
            key: f"{LAYOUTS[theirs.config.model_type].head}.{key.removeprefix(classifier)}"
            for key in shapes
            if key.startswith(classifier)
        }
        self._embedding = self._keys[embedding]
        if (
            tied
            and self._embedding not in self._weights.files
            and self._head in self._weights.files
        ):
            # What is one parameter stands there once, and that may be under the other name.
            self._embedding = self._keys[embedding] = self._head
        self._shapes = {self._keys[key]: shape for key, shape in shapes.items()}

    def check(self) -> None:
        """ConfigError where they are not those of the model, one and all."""
        self._weights.check(self._shapes)
        for key in sorted(self._weights.files.keys() - self._shapes.keys()):
            if not (self._tied and key == self._head) and not BUFFERS.fullmatch(key):
                raise ConfigError(
                    f"model = {self._name!r}: its {self._weights.files[key]} has {key}, which by "
                    f"its {CONFIG} the model has not"
                )
        if self._tied and self._head in self._weights.files:
            shapes = dict.fromkeys((self._head, self._embedding), self._shapes[self._embedding])
            found = self._weights.read(shapes)
            if not torch.equal(found[self._head], found[self._embedding]):
                raise ConfigError(
                    f"model = {self._name!r}: its {self._head} is another than its "
                    f"{self._embedding}, and by its {CONFIG} they are one; set tie_word_embeddings "
                    "to false there"
                )

    def read(self) -> dict[str, Tensor]:
        """The weights by the names of the model. Errors as `check`."""
        self.check()
        found = self._weights.read(self._shapes)
        return {ours: found[key] for ours, key in self._keys.items()}


def _staged(theirs: Any, spec: CausalSpec) -> CausalModel:
    """The same modules in stages, Conv1D as nn.Linear."""
    layout, config, base = LAYOUTS[spec.model_type], theirs.config, theirs.base_model
    classifier = theirs.get_output_embeddings()
    tokens, norm = base.get_input_embeddings(), base.get_submodule(layout.norm)
    places = None if layout.places is None else base.get_submodule(layout.places)
    # A file may have fields that its family does not go by.
    own = {each: getattr(config, each) for each in type(config).__dataclass_fields__}
    window = own.get("sliding_window")
    kinds = own.get("layer_types") or [SLIDING if window else ""] * spec.depth
    capped = own.get("attn_logit_softcapping") is not None
    blocks = []
    for kind, layer in zip(kinds, base.get_submodule(layout.layers), strict=True):
        _make_linear(layer)
        angles = None
        if layout.rotary is not None:
            angles = _settled(base.get_submodule(layout.rotary))
            angles = partial(angles, layer_type=kind) if layout.by_kind else angles
        blocks.append(Block(layer, Attended(angles, window if kind == SLIDING else None, capped)))
    cap = own.get("final_logit_softcapping")
    return CausalModel(
        spec,
        roles(spec.model_type),
        Embed(tokens, places, spec.context),
        blocks,
        Head(norm, classifier, cap),
    ).requires_grad_()


def _settled(rotary: Any) -> Any:
    """Angles that are the same for every length: "dynamic" ones change beyond the context alone.

    To see whether they have to, they ask for a value, which a model without values has not.
    """
    kinds = getattr(rotary, "rope_type", None)
    if isinstance(kinds, dict):
        rotary.rope_type = {k: "default" if v == "dynamic" else v for k, v in kinds.items()}
    elif kinds == "dynamic":
        rotary.rope_type = "default"
    return rotary


def _make_linear(layer: nn.Module) -> None:
    """Replace what computes x W + b by an nn.Linear, whose weight is W transposed, as a copy."""
    from transformers.pytorch_utils import Conv1D

    for path, module in list(layer.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            linear = nn.Linear(inputs, outputs, device="meta", dtype=module.weight.dtype)
            linear.weight = nn.Parameter(module.weight.detach().t().contiguous())
            linear.bias = module.bias
            layer.set_submodule(path, linear)
