"""Train a TACAFNet: deepspeed launch/train.py --config launch/configs/X.yaml [--set a.b=c ...] [--resume] [--dry-run]

`--dry-run --show-batch FILE.png` draws the first batch as the model would see it, which helps to check your own data.
`launch/train.py --explain model.cmaam` describes the settings of a section; `--explain` without a section describes
all.

The run folder gets checkpoints, a log, the trained model, its scores and a report. Everything random is a function of
(seed, epoch, step, position), so a resumed run continues exactly where it stopped. SIGTERM or SIGUSR1 to any rank saves
a checkpoint and ends the run with status 75.
"""

from tacaf.start import start

# If this file is run as a script, only the next lines are executed: `start` imports it again under its own name after
# signals are handled, and everything below belongs to that import.
if __name__ == "__main__":
    start("launch.train", signals=False)  # main handles SIGTERM and SIGUSR1; they are blocked until then

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tacaf import checkpoint, distributed
from tacaf.command import EXIT_LOST_RANK, EXIT_STOPPED, INPUT, Parser, entry, say, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.files import whole_file
from tacaf.losses.total import TacafLoss
from tacaf.optim import build_optimizer, rate_factor, set_rates
from tacaf.report.batch_picture import batch_picture
from tacaf.run_files import CHECKPOINTS_FOLDER, LOG_FILE
from tacaf.train.collapse import CollapseWatch
from tacaf.train.config import Config, load_config
from tacaf.train.cost import describe, describe_steps
from tacaf.train.engine import build_engine, check_settings, prepare_deepspeed
from tacaf.train.finish import check_scoring, evaluate_epoch, finish
from tacaf.train.flops import share_at_one_second
from tacaf.train.forward import draw
from tacaf.train.graphed import slow_norms, with_graph
from tacaf.train.log_file import log_into
from tacaf.train.new_model import build_model
from tacaf.train.processes import Place, choose_convolutions, keep_freed_memory, start_distributed, stop_distributed
from tacaf.train.ranges import Ranges, check_ranges
from tacaf.train.run import Run, TrainingData, open_folder, record_start
from tacaf.train.run_log import Extent, RunLog
from tacaf.train.saving import NotSavedError, find_checkpoint, resume, save
from tacaf.train.setting_list import explain
from tacaf.train.state import TrainState, circumstances, extension, must_match
from tacaf.train.step import build_compute
from tacaf.train.step_figures import launched
from tacaf.train.step_reader import StepReader, lag_of
from tacaf.train.stop import StoppedError, StopRequest
from tacaf.train.update import optimize
from tacaf.train.watchdog import LostRankError, Watchdog, naming_lost_ranks
from tacaf.vocabulary import InputError


def loop(run: Run) -> None:
    """Execute the rest of the run, from its first step or its checkpoint to its report.

    Raises StoppedError after saving everything if the run was told to stop.
    """
    config, state = run.config.train, run.first
    saved = state if run.resumed else None
    try:
        while True:
            # On a GPU, the newest step's figures have not been read yet. They must be read before that step is scored
            # or saved, because a non-finite one ends the run or is counted as skipped in the checkpoint.
            if state.step == 0 or state.must_save(config):
                state = settled(run, state)
            # Evaluate first, so that the checkpoint of this step records whether it is the best one.
            if state.awaits_evaluation:
                run.dog.at(f"the evaluation after epoch {state.epoch}")
                state = evaluate_epoch(run, state)
            # A full disk may have room again at the next save, so a failed one does not end the run.
            if state.must_save(config) and state != saved:
                try:
                    write_checkpoint(run, state)
                except NotSavedError as error:
                    run.log.warn_once(f"{error}; training continues")
                saved = state
            if state.epoch >= config.epochs:
                break
            # Stop only between updates, because a checkpoint does not contain the gradients of half an update.
            if config.begins_update(state.step):
                run.stop.check()
            state = train_step(run, state)
        run.dog.at("the last scores and the report")
        finish(run, state)
    except StoppedError:
        state = settled(run, state)
        if state != saved:
            write_checkpoint(run, state)
        run.log.say(f"stopped: saved after step {state.global_step}; continue with --resume")
        raise


def train_step(run: Run, state: TrainState) -> TrainState:
    """Forward, losses, backward and, at the end of an update, the optimiser's step. Returns the state after it."""
    config, here = run.config, f"epoch {state.epoch}, step {state.step}"
    run.dog.at(f"{here}, reading the batch")
    batch = next(run.batches).to(run.place.device)
    run.dog.at(f"{here}, forward and backward")
    first, last = config.train.first_of_update(batch.step), config.train.ends_update(batch.step)
    factor = rate_factor(config.optim, batch.epoch, first, run.data.steps_per_epoch, config.train.epochs)
    rates = set_rates(run.optimizer, factor)
    if run.ranges is not None:
        set_rates(run.ranges.optimizer, factor)
    computed = run.compute(batch, last)
    run.dog.at(f"{here}, update")
    norm = optimize(run.engine, clip_norm=config.optim.clip_norm, last=last, ranges=run.ranges)
    # On a GPU this reads the step before this one, so that the GPU has work while the host waits.
    run.dog.at(f"{here}, comparing losses")
    skipped = run.reader.add(launched(state.global_step, batch, rates, computed, norm), state.skipped)
    return state.after_step(run.data.steps_per_epoch)._replace(skipped=skipped)


def settled(run: Run, state: TrainState) -> TrainState:
    """The state after every figure has been read, so that every skipped step is counted."""
    run.dog.at(f"epoch {state.epoch}, step {state.step}, comparing losses")
    return state._replace(skipped=run.reader.finish(state.skipped))


def write_checkpoint(run: Run, state: TrainState) -> None:
    config = run.config
    run.dog.at(f"saving step {state.global_step}")
    facts = {
        **must_match(config, run.data.index),
        **circumstances(config, run.place.world_size),
        "state": state._asdict(),
    }
    save(
        run.engine,
        run.folder / CHECKPOINTS_FOLDER,
        state.global_step,
        facts,
        keep=config.train.keep,
        best=state.is_best,
        ranges=run.ranges,
    )
    run.log.next_step()


def train(config: Config, stop: StopRequest, *, resuming: bool, trusted: bool) -> None:
    """Execute a run. Raises InputError, before anything is written, if it cannot be trained or scored."""
    place = start_distributed(config.train.start_limit_s, config.train.stall_limit_s)
    prepare_deepspeed()
    choose_convolutions(config.train.deterministic)
    if place.device.type == "cpu":
        keep_freed_memory()
    with distributed.together():
        data = open_data(config, place)
    with (
        open_folder(config, resuming) as folder,
        Watchdog(folder, place.rank, place.world_size, config.train.stall_limit_s) as dog,
        naming_lost_ranks(dog),
        log_into(folder / LOG_FILE, place.rank),
    ):
        found = find_checkpoint(config, must_match(config, data.index), trusted) if resuming else None
        warning = record_start(config)
        run = build_run(config, place, data, found, stop, dog)
        if warning is not None:
            run.log.warn_once(warning)
        if resuming and not found:
            run.log.say("the run was interrupted before its first checkpoint and starts again")
        if found and (longer := extension(checkpoint.facts_of(found), config)):
            run.log.say(longer)
        loop(run)


def open_data(config: Config, place: Place) -> TrainingData:
    """The data of the run. Checks here what could otherwise fail after the training."""
    check_settings(config)
    index = ShardIndex.open(config.data.shards, config.data.remote)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    plan.check_ranks(place.world_size)
    check_ranges(config, plan.training_set.identities, place.world_size)
    check_scoring(config, index)
    return TrainingData(index=index, plan=plan, steps_per_epoch=config.train.steps_of_epoch(plan.steps_per_epoch))


def build_run(
    config: Config, place: Place, data: TrainingData, found: Path | None, stop: StopRequest, dog: Watchdog
) -> Run:
    """Model, optimiser, engine, log and batches, from the checkpoint `found`, or new if that is None."""
    dog.at("building the model")
    model, loaded = build_model(config, data.identities)
    model.to(place.device)
    images_per_update = config.data.plan.images_per_modality * config.train.accumulate
    optimizer = build_optimizer(config.optim, model.backbone_parameters(), model.new_parameters(), images_per_update)
    ranges = Ranges.of_model(config, model, images_per_update)
    engine = build_engine(config, model, optimizer, data.plan.images // place.world_size, found)
    first = TrainState.of(resume(engine, found, ranges)) if found else TrainState()
    extent = Extent(
        config.train.epochs * data.steps_per_epoch, data.plan.images, share_at_one_second(config, data.plan, place)
    )
    log = RunLog(config.train, config.run, place, extent, done=first.global_step, monitor=engine.monitor)
    contents = data.plan.training_set.describe(data.plan.config.images_per_identity)
    log.say(f"{contents}; {describe_steps(config.train, data.plan)}; {loaded}")
    used = config.model.classifier.expected_identities(data.identities, config.data.plan.identities_per_batch)
    compute = build_compute(config, engine, TacafLoss(config.loss))
    if config.train.cuda_graph:
        compute = with_graph(compute, engine, log.warn_once)
    elif reason := slow_norms(config):
        log.warn_once(reason)
    run = Run(
        config=config,
        place=place,
        data=data,
        engine=engine,
        optimizer=optimizer,
        ranges=ranges,
        batches=open_batches(config, place, data, first, log),
        compute=compute,
        first=first,
        resumed=found is not None,
        log=log,
        reader=StepReader(log, data.index, lag_of(place.device), CollapseWatch(config.loss, used)),
        stop=stop,
        dog=dog,
    )
    model.train()
    return run


def open_batches(config: Config, place: Place, data: TrainingData, state: TrainState, log: RunLog) -> TrainingPipeline:
    """The batches from the state's step on, for this rank."""
    augment = config.data.augment
    return TrainingPipeline(
        data.index,
        TrainingSource(data.plan, augment, data.steps_per_epoch, rank=place.rank, ranks=place.world_size),
        config.data,
        start=(state.epoch, state.step),
        device_id=place.device_id,
        report=log.warn,
        draw_pairs=functools.partial(draw, config),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=to_path, help="the YAML file of the run; launch/configs/ has examples")
    what.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="SECTION",
        help="describe every setting, or those of a section such as model.cmaam, and stop",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override one setting, such as train.epochs=20; may be given several times",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the run's newest complete checkpoint")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="resume from a checkpoint that belongs to another user or comes from another machine",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and an estimate of steps, parameters, memory and disk, and stop",
    )
    parser.add_argument(
        "--show-batch",
        type=to_picture,
        metavar="FILE.png",
        help="with --dry-run: draw images of the first batch before and after augmentation",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers add it
    args = parser.parse_args(argv)
    if args.show_batch is not None and not args.dry_run:
        parser.error("--show-batch needs --dry-run; add it")
    return args


def to_picture(text: str) -> Path:
    """The path of a PNG file. Refuses names with another ending."""
    path = to_path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, got {text!r}")
    return path


def show_batch(config: Config, path: Path) -> None:
    """Draw the first batch of the run into a PNG file, with images read and augmented on the CPU."""
    index = ShardIndex.open(config.data.shards, config.data.remote)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    picture = batch_picture(index, plan, config.data, report=functools.partial(print, file=sys.stderr))
    with whole_file(path) as file:
        picture.save(file, "PNG")


def read_config(args: argparse.Namespace) -> Config:
    """The configuration. Every rank reads the same files, so only one of them reports a mistake."""
    try:
        return load_config(args.config, args.set)
    except InputError as error:
        raise InputError(str(error), shared=True) from error


@entry(signals=False)  # the StopRequest handles them
def main(argv: Sequence[str] | None = None) -> int:
    stop = StopRequest().listen()
    args = parse(argv)
    first = os.environ.get("RANK", "0") == "0"
    if args.explain is not None:
        if first:
            print(explain(args.explain))
        return 0
    try:
        config = read_config(args)
        if args.dry_run:
            if first:
                # Before the estimate, which refuses a run that needs more memory than this machine has.
                if args.show_batch is not None:
                    show_batch(config, args.show_batch)
                print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        train(config, stop, resuming=args.resume, trusted=args.trust)
    except NotSavedError as error:
        return say(error, str(error), INPUT)
    except LostRankError as error:
        say(error, str(error), EXIT_LOST_RANK)
        os._exit(EXIT_LOST_RANK)  # the other ranks no longer respond
    except StoppedError:
        return EXIT_STOPPED
    finally:
        stop_distributed()
    return 0
