"""The training loop of the examples: seeds, schedule, averaged weights, checkpoints, processes."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from mnist.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from mnist.data import MNIST, Images
from mnist.optimizers import Optimizers
from mnist.watched import Watched
from program.errors import ExampleError
from program.files import open_new_folder

EVALUATION_BATCH = 1000
# Steps between two looks at the loss on a GPU, which each look leaves without work for a while.
WATCHED_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is optimised.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes together.
        learning_rate: its largest value, in AdamW.
        weight_decay: of the weight matrices only.
        warmup: the part of all steps during which the learning rate rises; then it falls to zero
            along a cosine.
        ema_decay: of the moving average of the weights, which is what is validated and kept; 0 is
            no average.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float
    ema_decay: float

    @property
    def largest_norm(self) -> float | None:
        """The norm to which larger gradients are scaled; None where none are."""
        return None

    def prepare(self, model: Any, epoch: int) -> bool:
        """Makes a model ready for an epoch; whether it now is another one than in the last."""
        return False

    def hidden_matrices(self, model: Any) -> list[nn.Parameter]:
        """The matrices that Muon optimises, none as a rule; AdamW has all other parameters."""
        return []

    @property
    def hidden_rate(self) -> float:
        """The largest learning rate of these matrices."""
        return 0.0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a part of its largest value."""
        rising = self.warmup * steps
        if step + 1 < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


class Task(Protocol):
    """What an example adds to the loop."""

    def loss(self, model: nn.Module, batch: Images) -> Tensor:
        """The mean loss over a batch; `model` is to be used by calling it only."""

    def classify(self, model: Any, images: Tensor) -> Tensor:
        """The scores `(N, 10)` of images `(N, 28, 28)`."""

    def observe(self, model: Any, validation: Images) -> Mapping[str, float | None]:
        """More numbers for the history, after each epoch."""

    def describe(self, observed: Mapping[str, float | None]) -> str:
        """These numbers, and others of the history, as the end of the epoch's line."""


@dataclass(frozen=True)
class Run:
    """One run of an example.

    Attributes:
        folder: where its files go.
        seed: of the initial weights, the order of the images and the dropout.
        resume: whether to continue what is in the folder.
        options: what else a checkpoint must have in common with the run that continues it.
    """

    folder: Path
    seed: int
    resume: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """What training leaves behind; the model itself then has the best weights.

    Attributes:
        best_epoch: the epoch whose averaged weights did best on the validation images.
        history: what was observed after each epoch.
        seconds: the running time, that before a resumption included.
    """

    best_epoch: int
    history: list[dict[str, float | None]]
    seconds: float


def derive_seed(*numbers: int) -> int:
    """A seed that depends on all the numbers, and not on what was drawn before."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def accuracy(task: Task, model: nn.Module, images: Images) -> float:
    """The fraction of images that are classified correctly, by finite scores."""
    correct = 0
    with torch.no_grad():
        for part in in_batches(images):
            scores = task.classify(model, part.images)
            right = (scores.argmax(-1) == part.labels) & scores.isfinite().all(-1)
            correct += int(right.sum())
    return correct / len(images)


def in_batches(images: Images) -> list[Images]:
    """Cuts images into batches whose size depends on nothing, so that results repeat."""
    starts = range(0, len(images), EVALUATION_BATCH)
    return [images[start : start + EVALUATION_BATCH] for start in starts]


def train(
    model: nn.Module, task: Task, data: MNIST, recipe: Recipe, run: Run, accelerator: Accelerator
) -> Trained:
    """Trains a model, with a checkpoint after every epoch.

    Args:
        model: gets the best weights in the end.
        task: the loss, and what is observed.
        data: the images, on the accelerator's device.
        recipe: how.
        run: where, and whether to continue.
        accelerator: the device and the processes; only the main process writes.

    Returns:
        What is worth reporting.
    """
    trainer = _Trainer(model, task, data, recipe, run, accelerator)
    trainer.open_folder()
    for epoch in range(trainer.epoch + 1, recipe.epochs + 1):
        observed = trainer.train_epoch(epoch)
        if accelerator.is_main_process:
            trainer.finish_epoch(epoch, observed)
    accelerator.wait_for_everyone()
    return trainer.finish()


class _Trainer:
    """The state of a training run."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        data: MNIST,
        recipe: Recipe,
        run: Run,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.data, self.recipe, self.run = task, data, recipe, run
        self.accelerator = accelerator
        count, processes = len(data.train), accelerator.num_processes
        self.batches = math.ceil(count / recipe.batch_size)
        if count // self.batches < processes:
            raise ExampleError(
                f"{count} training images in batches of {recipe.batch_size} are too few for "
                f"{processes} processes; expected an image for each process in every batch"
            )
        self.model = model.to(accelerator.device)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        self.optimizers = Optimizers(self.model, recipe, self.batches * recipe.epochs)
        self.identity = {
            **run.options,
            **dataclasses.asdict(recipe),
            "seed": run.seed,
            "dataset": data.name,
            "training images": count,
            "processes": processes,
        }
        self.epoch = 0
        self.seconds = 0.0
        self.best: dict[str, Any] = {"epoch": 0, "accuracy": -1.0, "weights": {}}
        self.history: list[dict[str, float | None]] = []
        self.started = time.perf_counter()

    def open_folder(self) -> None:
        """Makes the run's folder or reads its checkpoint, then spreads over the processes."""
        if self.run.resume:
            self._restore(load_checkpoint(self.run.folder, self.identity))
            self.accelerator.print(
                f"continuing {self.run.folder} after epoch {self.epoch} of {self.recipe.epochs}"
            )
        elif self.accelerator.is_main_process:
            open_new_folder(self.run.folder)
            # A run that is killed in its first epoch can be resumed like any other.
            self._save()
        self.parallel = self.accelerator.prepare(self.model)
        self.optimizers.prepare(self.accelerator)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training images, with a model that the recipe makes ready for it.

        Returns:
            The mean loss of this process's images, and the mean and the largest norm of the
            gradient, before it is clipped where the recipe says so.
        """
        if self._prepare(epoch):
            # What the last model could do says nothing about this one.
            self.best = {"epoch": 0, "accuracy": -1.0, "weights": {}}
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        order = torch.Generator().manual_seed(derive_seed(self.run.seed, epoch, 0))
        torch.manual_seed(derive_seed(self.run.seed, epoch, 1 + rank))
        permutation = torch.randperm(len(self.data.train), generator=order)
        batches = permutation.to(self.accelerator.device).tensor_split(self.batches)
        self.parallel.train()
        advice = (
            f"the recipe's learning rate {self.recipe.learning_rate:g} may be too large; "
            f"{self.run.folder} keeps the checkpoint of epoch {epoch - 1}, which --resume continues"
        )
        watched = Watched(self.model, epoch, len(batches), advice)
        interval = WATCHED_STEPS if self.accelerator.device.type == "cuda" else 1
        progress = tqdm(
            batches,
            desc=f"epoch {epoch}/{self.recipe.epochs}",
            leave=False,
            disable=None if self.accelerator.is_main_process else True,
        )
        for number, batch in enumerate(progress, 1):
            mine = batch[rank::processes]
            self.optimizers.zero_grad()
            try:
                loss = self.task.loss(self.parallel, self.data.train[mine])
                # The processes' gradients are averaged; the weight makes that the batch's mean.
                self.accelerator.backward(loss * (len(mine) * processes / len(batch)))
            except Exception:
                # Mostly because of what a step before has left behind.
                watched.read()
                watched.check_weights()
                raise
            watched.add(loss)
            if number % interval == 0 or number == len(batches):
                progress.set_postfix(loss=f"{watched.read():.4f}", refresh=False)
            if (largest := self.recipe.largest_norm) is not None:
                clip_grad_norm_(self.model.parameters(), largest)
            self.optimizers.step()
            self.average.update_parameters(self.model)
        watched.check_weights()
        return watched.summary()

    def finish_epoch(self, epoch: int, trained: Mapping[str, float]) -> None:
        """Validates the averaged weights, prints the epoch's line and writes the checkpoint."""
        self.average.eval()
        averaged = self.average.module
        validated = accuracy(self.task, averaged, self.data.validation)
        observed = self.task.observe(averaged, self.data.validation)
        if validated >= self.best["accuracy"]:
            weights = {name: value.clone() for name, value in averaged.state_dict().items()}
            self.best = {"epoch": epoch, "accuracy": validated, "weights": weights}
        self.history.append(
            {
                "epoch": epoch,
                **trained,
                "validation_accuracy": validated,
                **observed,
            }
        )
        self.epoch = epoch
        self._save()
        print(
            f"epoch {epoch}/{self.recipe.epochs}  loss {trained['loss']:.4f}  "
            f"validation accuracy {validated:.2%}{self.task.describe(self.history[-1])}",
            flush=True,
        )

    def finish(self) -> Trained:
        """Gives the model the best weights."""
        self._prepare(self.recipe.epochs)
        if self.accelerator.is_main_process:
            self.model.load_state_dict(self.best["weights"])
        self.model.eval()
        return Trained(self.best["epoch"], self.history, self._seconds())

    def _prepare(self, epoch: int) -> bool:
        self.recipe.prepare(self.average.module, epoch)
        return self.recipe.prepare(self.model, epoch)

    def _save(self) -> None:
        save_checkpoint(
            self.run.folder,
            Checkpoint(
                identity=self.identity,
                epoch=self.epoch,
                seconds=self._seconds(),
                model=self.model.state_dict(),
                average=self.average.state_dict(),
                optimizers=self.optimizers.state_dict(),
                best=self.best,
                history=self.history,
            ),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.model)
        self.average.load_state_dict(checkpoint.average)
        self.optimizers.load_state_dict(checkpoint.optimizers)
        self.epoch, self.seconds = checkpoint.epoch, checkpoint.seconds
        self.best, self.history = checkpoint.best, checkpoint.history

    def _average(self, averages: Any, values: Any, _: Tensor | int) -> None:
        """The rule of the averaged weights: young averages forget their start faster."""
        # The argument is a copy on the device, whose value would have to be waited for.
        updates = int(self.average.n_averaged)
        young = (1 + updates) / (10 + updates)
        get_ema_multi_avg_fn(min(self.recipe.ema_decay, young))(averages, values, updates)

    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.started
