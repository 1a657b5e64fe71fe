"""The whole pipeline of one cell."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution
from pipeline.config.cluster import ClusterConfig
from pipeline.config.corpus import CorpusConfig
from pipeline.config.evaluation import AVERAGE, EvaluateConfig
from pipeline.config.finetuning import SFTConfig
from pipeline.config.midtraining import MidtrainConfig
from pipeline.config.model import ModelConfig
from pipeline.config.prior import Prior
from pipeline.config.rl import RLConfig
from pipeline.config.tasks import Task
from pipeline.config.tracking import TrackingConfig
from pipeline.config.training import Milestones, NextTokenTraining, PretrainConfig

_THIS_MACHINE = ClusterConfig(kind="local")


class RecipeConfig(Config):
    """The whole pipeline of one cell."""

    name: str = execution("recipe")
    task: Task
    corpus: CorpusConfig
    model: ModelConfig
    prior: Prior
    pretrain: PretrainConfig
    midtrain: MidtrainConfig | None = None
    sft: SFTConfig | None = None
    rl: RLConfig | None = None
    evaluate: EvaluateConfig
    seed: int = Field(0, ge=0, lt=2**32)
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = Field(default_factory=lambda: _THIS_MACHINE, json_schema_extra={"execution": True})

    @property
    def evaluation_sets(self) -> dict[str, tuple[Task, EvaluateConfig]]:
        """The evaluation sets by name: task, and protocol with the number of problems; the recipe's own task if none is listed.

        Benchmarks of the harness belong to no set: they run once, with the first.
        """
        if not self.evaluate.sets:
            return {self.task.name: (self.task, self.evaluate)}
        found = {}
        for number, one in enumerate(self.evaluate.sets):
            task = self.task if one.task is None else one.task
            changes = {"sets": (), "problems": one.problems or self.evaluate.problems}
            changes |= {} if number == 0 else {"harness": None}
            found[task.name] = (task, self.evaluate.model_copy(update=changes))
        return found

    @property
    def measured_on(self) -> str:
        """The name that tables use for what is evaluated on: the one set, or the average over several."""
        names = list(self.evaluation_sets)
        return AVERAGE if len(names) > 1 else names[0]

    @property
    def chance(self) -> float:
        """Share of responses that guessing gets right, as the mean over evaluation sets."""
        chances = [task.chance for task, _ in self.evaluation_sets.values()]
        return sum(chances) / len(chances)

    @property
    def start_step(self) -> int | None:
        """The step of pre-training whose checkpoint RL starts from; None for the last, or if there is none to start from."""
        step = None if self.rl is None else Milestones.step_at(self.rl.start, self.pretrain.steps)
        return None if step == self.pretrain.steps else step

    @property
    def midtrain_prior(self) -> Prior:
        """Mid-training's own prior, or pre-training's at its end."""
        own = None if self.midtrain is None else self.midtrain.prior
        return self.prior.at(1.0) if own is None else own

    @property
    def midtrain_corpus(self) -> CorpusConfig | None:
        """Mid-training's own text, with the first corpus's tokenizer; None if it has no text of its own."""
        own = None if self.midtrain is None else self.midtrain.corpus
        return None if own is None else own.model_copy(update={"tokenizer": self.corpus.tokenizer})

    @property
    def trainings(self) -> dict[str, tuple[NextTokenTraining, int]]:
        """By kind of stage, in their order: what is trained before RL, and how many tokens its blocks have."""
        found: dict[str, tuple[NextTokenTraining, int]] = {"pretrain": (self.pretrain, self.corpus.block_size)}
        if self.midtrain is not None:
            found["midtrain"] = self.midtrain, (self.midtrain_corpus or self.corpus).block_size
        if self.sft is not None:
            found["sft"] = self.sft, self.sft.block_size
        return found

    @property
    def last_positions(self) -> int:
        """Positions of the model RL starts from: mid-training and fine-tuning extend them to fit their blocks."""
        return max(self.model.max_positions, *(block for _, block in self.trainings.values()))

    @model_validator(mode="after")
    def _engine_can_split_the_model(self) -> RecipeConfig:
        if self.rl is not None:
            self.model.check_tensor_parallel(self.rl.processes_per_engine)
        return self

    @model_validator(mode="after")
    def _sleep_has_the_gpu_to_itself(self) -> RecipeConfig:
        if self.rl is not None and self.rl.engine.sleep and self.cluster.stages_per_gpu > 1:
            raise ValueError(
                f"rl.engine.sleep is true and cluster.stages_per_gpu is {self.cluster.stages_per_gpu}, but vLLM gives up when a "
                "neighbour takes memory while its engine falls asleep; set one of the two back"
            )
        return self

    @model_validator(mode="after")
    def _text_has_no_responses(self) -> RecipeConfig:
        own = None if self.midtrain is None else self.midtrain.prior
        for training, key, prior in (("pre-training", "prior", self.prior), ("mid-training", "midtrain.prior", own)):
            if prior is not None and prior.needs_responses:
                raise ValueError(
                    f"{key} is {prior.name}, which weights whole responses, but the text of {training} does not mark them; "
                    "use it in fine-tuning: sft.prior=coverage"
                )
        return self

    @model_validator(mode="after")
    def _adopted_stays_as_it_is(self) -> RecipeConfig:
        if self.pretrain.adopted is not None and self.prior.temperature != 1:
            raise ValueError(
                f"prior.temperature is {self.prior.temperature:g}, but an adopted checkpoint (pretrain.adopted) is used as it is; "
                "leave the temperature out, or sample at it with evaluate.temperatures and rl.temperature"
            )
        return self

    @model_validator(mode="after")
    def _rl_starts_from_a_kept_checkpoint(self) -> RecipeConfig:
        step = self.start_step
        if self.rl is None or step is None:
            return self
        start = f"rl.start is {self.rl.start:g}"
        for key, what in (("midtrain", "mid-training"), ("sft", "fine-tuning")):
            if getattr(self, key) is not None:
                raise ValueError(f"{start}, but {what} continues from the end of pre-training; drop one of the two ({key}=null)")
        if self.pretrain.adopted is not None:
            raise ValueError(f"{start}, but an adopted checkpoint (pretrain.adopted) has no earlier ones; leave rl.start out")
        if step not in self.pretrain.milestones:
            kept = ", ".join(map(str, self.pretrain.milestones)) or "none but the last"
            raise ValueError(
                f"{start}, step {step} of pre-training, which is not among the checkpoints it keeps ({kept}); list all starts in "
                f"pretrain.evaluate_at, e.g. pretrain.evaluate_at=[{self.rl.start:g}], so that they share one pre-training"
            )
        return self

    @model_validator(mode="after")
    def _one_tokenizer(self) -> RecipeConfig:
        own = None if self.midtrain is None else self.midtrain.corpus
        if own is not None and own.tokenizer not in (CorpusConfig.model_fields["tokenizer"].default, self.corpus.tokenizer):
            raise ValueError("midtrain.corpus.tokenizer differs from corpus.tokenizer; leave it out, since a model has one tokenizer")
        return self

    @model_validator(mode="after")
    def _sets_have_names_of_their_own(self) -> RecipeConfig:
        names = [(self.task if one.task is None else one.task).name for one in self.evaluate.sets]
        taken = next((name for name in names if name == AVERAGE or names.count(name) > 1), None)
        if taken is not None:
            why = "stands for the mean over sets" if taken == AVERAGE else "names two of them"
            raise ValueError(
                f"evaluate.sets has {', '.join(names)}, but {taken!r} {why}; give a set another name: "
                f"{{task: {{use: {taken}, name: OTHER}}}}"
            )
        return self

    @model_validator(mode="after")
    def _processes_fit_the_nodes(self) -> RecipeConfig:
        launches = {kind: settings.launch for kind, settings in self if isinstance(settings, NextTokenTraining | RLConfig)}
        for kind in ("corpus", "evaluate", *launches):
            launch = launches.get(kind)
            processes, nodes = 1 if launch is None else launch.processes, self.cluster.resources(kind).nodes
            if self.cluster.kind == "slurm" and processes % nodes:
                key = f"{kind}.launch.processes ({processes})" if launch is not None else f"the one process of stage {kind}"
                raise ValueError(f"cluster.{kind}.nodes is {nodes}; {key} cannot be spread evenly over them")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> RecipeConfig:
        if self.corpus.block_size > self.model.max_positions:
            raise ValueError(f"corpus.block_size ({self.corpus.block_size}) exceeds model.max_positions ({self.model.max_positions})")
        limits = [] if self.rl is None else [("rl", self.rl.longest_response, self.task, "task", self.last_positions)]
        # The same protocol evaluates the model before mid-training adds positions.
        for number, (task, protocol) in enumerate(self.evaluation_sets.values()):
            key = "task" if task is self.task else f"evaluate.sets.{number}.task"
            limits.append(("evaluate", protocol.max_response_tokens, task, key, self.model.max_positions))
        for stage, limit, task, key, positions in limits:
            prompt = task.max_prompt_tokens
            if prompt + limit > positions:
                raise ValueError(
                    f"{stage}.max_response_tokens ({limit}) plus {prompt} prompt tokens exceed "
                    f"model.max_positions ({positions}); lower {key}.max_prompt_tokens or max_response_tokens, "
                    "or raise model.max_positions"
                )
        return self
