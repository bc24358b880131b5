"""Train a TACAFNet: deepspeed launch/train.py --config launch/configs/X.yaml [--set a.b=c ...] [--resume] [--dry-run]

Data, model, engine, then one loop: forward, loss, backward, step, log; at the end of an epoch evaluate and save.
Everything random is a function of (seed, epoch, step, position), so a resumed run goes on exactly where it stood.
SIGTERM or SIGUSR1 to any rank: a checkpoint, and exit status 75.
"""

from tacaf.command import INPUT, Parser, entry, say, to_path
from tacaf.start import start
from tacaf.train.stop import EXIT_CODE, STOP, StoppedError, StopRequest

if __name__ == "__main__":
    STOP.listen()  # before the slow imports: a signal during them counts too
    start("launch.train", signals=False)

import argparse
import functools
import os
from collections.abc import Sequence

from tacaf import distributed
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.losses.total import TacafLoss
from tacaf.optim import build_optimizer, rate_factor, set_rates
from tacaf.train import engine as deepspeed_engine
from tacaf.train.config import Config, load_config
from tacaf.train.cost import describe, describe_steps
from tacaf.train.finish import check_scoring, evaluate_epoch, finish
from tacaf.train.flops import share_at_one_second
from tacaf.train.forward import draw
from tacaf.train.graphed import build_compute
from tacaf.train.new_model import build_model
from tacaf.train.run_folder import open_run, record_start
from tacaf.train.run_log import Watcher
from tacaf.train.state import TrainState, circumstances, extension, must_match
from tacaf.train.step_figures import StepReader, lag_of, launched
from tacaf.train.update import optimize
from tacaf.train.watchdog import EXIT_CODE as LOST
from tacaf.train.watchdog import LostRankError, Watchdog, naming_lost_ranks
from tacaf.vocabulary import InputError


def train(config: Config, resume: bool, stop: StopRequest, trusted: bool = False) -> None:
    place = deepspeed_engine.start_distributed(config.train.start_limit_s, config.train.stall_limit_s)
    deepspeed_engine.choose_convolutions(config.train.deterministic)
    stop.any_rank = distributed.any_rank
    with distributed.together():
        deepspeed_engine.check_settings(config)
        index = ShardIndex.open(config.data.shards, config.data.remote)
        plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
        plan.check_ranks(place.world_size)
        check_scoring(config, index)  # an error now, not after the training
    steps = config.train.steps_of_epoch(plan.steps_per_epoch)
    facts = must_match(config, index)
    with (
        open_run(config, resume) as run,
        Watchdog(run, place.rank, place.world_size, config.train.stall_limit_s) as dog,
        naming_lost_ranks(dog),
    ):
        stop.moving = dog.moving
        checkpoints = run / deepspeed_engine.CHECKPOINTS
        found = deepspeed_engine.find_checkpoint(config, facts, trusted) if resume else None
        said = record_start(config)
        identities = plan.training_set.identities
        dog.at("building the model")
        model, loaded = build_model(config, identities)
        model.to(place.device)
        optimizer = build_optimizer(
            config.optim,
            model.backbone_parameters(),
            model.new_parameters(),
            config.data.plan.images_per_modality * config.train.accumulate,
        )
        engine = deepspeed_engine.build_engine(config, model, optimizer, plan.images // place.world_size, found)
        saved_facts = deepspeed_engine.resume(engine, found) if found else {}
        state = TrainState.of(saved_facts) if found else TrainState()
        criterion = TacafLoss(config.loss)
        watcher = Watcher(config, run, place, state, config.train.epochs * steps, plan.images, stop)
        watcher.monitor, watcher.share_at_1s = engine.monitor, share_at_one_second(config, plan, place)
        watcher.say(f"{plan.training_set.describe()}; {describe_steps(config.train, plan)}; {loaded}")
        if said is not None:
            watcher.warn_once(said)
        if resume and not found:
            watcher.say("the run was interrupted before its first checkpoint; it begins again")
        if longer := extension(saved_facts, config):
            watcher.say(longer)
        batches = TrainingPipeline(
            index,
            plan,
            config.data.augment,
            rank=place.rank,
            ranks=place.world_size,
            device_id=place.device_id,
            start=(state.epoch, state.step),
            steps_per_epoch=steps,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            workers=config.data.workers,
            on_bad_sample=config.data.on_bad_sample,
            bad_sample_share=config.data.bad_sample_share,
            report=watcher.warn,
            draw_pairs=functools.partial(draw, config),
        )
        compute = build_compute(config, engine, criterion, watcher.warn_once)
        reader = StepReader(watcher, index, state.skipped, lag_of(place.device))
        model.train()

        def settle() -> None:
            """Read the figures that are on their way, so that the state says all there is to say."""
            nonlocal state
            dog.at(f"epoch {state.epoch}, step {state.step}, comparing losses")
            reader.finish()
            state = state._replace(skipped=reader.skipped)

        def save() -> None:
            dog.at(f"saving step {state.global_step}")
            whole = {**facts, **circumstances(config, place.world_size), "state": state._asdict()}
            deepspeed_engine.save(engine, checkpoints, state.global_step, whole, config.train.keep, state.is_best)
            watcher.next_step()

        saved = state if found else None
        try:
            while True:
                if state.step == 0 or state.must_save(config.train):
                    settle()
                if state.awaits_evaluation:
                    dog.at(f"the evaluation after epoch {state.epoch}")
                    state = evaluate_epoch(config, state, engine, index, place, run, watcher, identities)
                if state.must_save(config.train) and state != saved:
                    try:
                        save()
                    except deepspeed_engine.NotSavedError as error:
                        watcher.warn_once(f"{error}; the training goes on")
                    saved = state
                if state.epoch >= config.train.epochs:
                    break
                first = config.train.begins_update(state.step)
                if first:
                    stop.check()
                here = f"epoch {state.epoch}, step {state.step}"
                dog.at(f"{here}, reading the batch")
                batch = next(batches).to(place.device)
                dog.at(f"{here}, forward and backward")
                if first:
                    factor = rate_factor(config.optim, batch.epoch, batch.step, steps, config.train.epochs)
                    rates = set_rates(optimizer, factor)
                last = config.train.ends_update(batch.step)
                terms, figures_F = compute(batch, last)
                dog.at(f"{here}, update")
                norm = optimize(engine, clip_norm=config.optim.clip_norm, last=last)
                dog.at(f"{here}, comparing losses")
                reader.add(launched(state.global_step, batch, rates, batch.wait_s, terms, figures_F, norm))
                state = state.after_step(steps)._replace(skipped=reader.skipped)
            dog.at("the last scores and the report")
            finish(config, state, engine, index, place, run, watcher, identities)
        except StoppedError:
            settle()
            if state != saved:
                save()
            watcher.say(f"asked to stop: saved after step {state.global_step}; --resume goes on from there")
            raise


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=to_path, required=True, help="YAML file, see launch/configs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override one value; may be given several times"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest whole checkpoint")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="resume from a checkpoint although it is another user's or came from elsewhere",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config, steps, parameters, memory and disk, and stop"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers add it
    return parser.parse_args(argv)


@entry(signals=False)  # STOP answers them
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        config = _read_config(args)
        if args.dry_run:
            if os.environ.get("RANK", "0") == "0":
                print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        train(config, args.resume, STOP, args.trust)
    except deepspeed_engine.NotSavedError as error:
        return say(error, str(error), INPUT)
    except LostRankError as error:
        say(error, str(error), LOST)
        os._exit(LOST)  # the other ranks do not answer any more
    except StoppedError:
        return EXIT_CODE
    finally:
        deepspeed_engine.stop_distributed()
    return 0


def _read_config(args: argparse.Namespace) -> Config:
    """The configuration. Every rank reads the same files, so that one of them need report a mistake."""
    try:
        return load_config(args.config, args.set)
    except InputError as error:
        error.shared = True
        raise
