"""What `vla-agents eval` does: play, write every finished episode down, report; go on where it was stopped; in parts.

report = run_eval(EvalConfig(agent="runs/demo/train", suite="tabletop_medium"))
report = merge([Path("part1"), Path("part2")], Path("whole"))
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich
from rich.console import Console

from vla_agents.config import save_yaml, to_dict
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError
from vla_agents.eval.evaluate import (
    EPISODES,
    EvalConfig,
    check_config,
    evaluate,
    make_eval_agent,
    make_eval_env,
)
from vla_agents.eval.ledger import NAME, Entry, Ledger, LedgerKeeper, differ, fingerprint, read
from vla_agents.eval.on_ray import play_on_ray
from vla_agents.eval.page import Section, write_page
from vla_agents.eval.report import EvalReport, Timing
from vla_agents.eval.suites import SUITES, Suite, free_options
from vla_agents.eval.video import Clip, VideoRecorder
from vla_agents.progress import ProgressBar
from vla_agents.versions import package_versions

RESULTS = "results.json"
# How and where an evaluation ran, which does not change what it finds.
_RUN = (
    "out",
    "videos",
    "metrics",
    "num_envs",
    "asynchronous",
    "device",
    "resume",
    "overwrite",
    "shard",
    "ray",
)


def run_eval(config: EvalConfig, *, console: Console | None = None, progress: bool = True) -> EvalReport:
    """Evaluate as a config says; prints the table, writes episodes.jsonl, results.json, report.html, run.yaml, videos/.

    Raises:
        ConfigError: Also where `out` holds an unfinished evaluation, or another one is to be resumed.
        KeyboardInterrupt: Ctrl-C, after the finished episodes were written (marked as partial).
    """
    check_config(config)
    console = console or rich.get_console()
    config, seeds = _resolve(config)
    ledger = _ledger(config)
    try:
        timing, clips, interrupted = _play(config, ledger, seeds, console, progress)
    finally:
        ledger.close()
    report = _report(ledger.identity, ledger.entries, seeds, timing, interrupted)
    report.save(config.out / RESULTS)
    title = f"{config.agent} in {config.suite or config.env_args.get('env', config.env)}" + (
        " (swapped instructions)" if config.swapped else ""
    )
    metrics = config.metrics or _metrics_of(config.agent)
    note = _protocol(SUITES.get(config.suite)) if config.suite else ""
    sections = [Section("Success", report, note=note, clips=clips)]
    write_page(config.out / "report.html", sections, title=title, metrics=metrics)
    console.print(report.table(title))
    console.print(f"Report: {config.out / 'report.html'}", soft_wrap=True, markup=False, highlight=False)
    if interrupted:
        count = f"{len(report.episodes)} finished episodes"
        line = f"Stopped: {count} are in {config.out}, marked as partial; --resume goes on."
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        raise KeyboardInterrupt
    return report


def merge(parts: Sequence[Path], out: Path) -> EvalReport:
    """Put the ledgers of several evaluations of the same agent under the same protocol together.

    Raises:
        ConfigError: They differ in what was evaluated, or disagree on an episode.
    """
    if not parts:
        raise ConfigError("nothing to merge", "vla-agents eval merge OUT PART [PART ...]")
    identity, entries, _ = read(parts[0] / NAME)
    found: dict[int, Entry] = {}
    for folder in parts:
        theirs, entries, _ = read(folder / NAME)
        differences = differ(identity, theirs)
        if differences:
            raise ConfigError(
                f"{parts[0]} and {folder} are not parts of one evaluation: {'; '.join(differences)}",
                "merge parts of the same agent, env and versions; compare others with `vla-agents eval compare`",
            )
        for entry in entries:
            known = found.setdefault(entry.result.seed, entry)
            if replace(known.result, seconds=0.0) != replace(entry.result, seconds=0.0):
                raise ConfigError(
                    f"{folder}: the episode of seed {entry.result.seed} went otherwise in another part"
                )
    if (out / NAME).exists():
        raise ConfigError(f"{out} holds an evaluation already", "give another folder")
    ledger = Ledger(out, identity)
    ledger.open()
    for seed in sorted(found):
        ledger.add(found[seed])
    ledger.close()
    report = _report(identity, ledger.entries, sorted(found), Timing(), False)
    report.save(out / RESULTS)
    write_page(out / "report.html", [Section("Success", report)], title=f"{len(parts)} parts together")
    return report


def _resolve(config: EvalConfig) -> tuple[EvalConfig, list[int]]:
    """The config with its suite spelled out, and the reset seeds."""
    if config.suite:
        suite: Suite = SUITES.get(config.suite)
        if config.max_steps is not None:
            raise ConfigError(
                f"--max-steps contradicts the protocol of suite {config.suite!r}", "leave it out"
            )
        seeds = suite.seeds(config.episodes)
        config = replace(
            config, env=suite.env, env_args=free_options(suite, config.env_args), episodes=len(seeds)
        )
    else:
        count = config.episodes or EPISODES
        seeds = list(range(config.seed, config.seed + count))
        config = replace(config, episodes=count)
    return config, _shard(seeds, config.shard)


def _shard(seeds: list[int], shard: str) -> list[int]:
    if not shard:
        return seeds
    part, _, count = shard.partition("/")
    if not (part.isdigit() and count.isdigit() and 1 <= int(part) <= int(count) <= len(seeds)):
        raise ConfigError(
            f"shard is {shard!r}", f"give PART/PARTS, e.g. 1/4, with at most {len(seeds)} parts"
        )
    begin, end = (len(seeds) * number // int(count) for number in (int(part) - 1, int(part)))
    return seeds[begin:end]


def _ledger(config: EvalConfig) -> Ledger:
    """The ledger with what is to be gone on with; nothing is written before env and agent are there."""
    if config.resume and config.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other", "give one of them")
    what = {key: value for key, value in to_dict(config).items() if key not in (*_RUN, "seed", "episodes")}
    ledger = Ledger(
        config.out, {"config": what, "weights": fingerprint(config.agent), "versions": package_versions()}
    )
    if config.resume:
        ledger.load()
    elif not config.overwrite and _unfinished(config.out):
        raise ConfigError(
            f"{config.out} holds an evaluation that was not finished",
            "--resume goes on with it, --overwrite starts anew",
        )
    return ledger


def _begin(config: EvalConfig, ledger: Ledger) -> None:
    """From here on `out` is this evaluation's."""
    ledger.open()
    save_yaml(replace(config, resume=False, overwrite=False), config.out / "run.yaml")
    (config.out / RESULTS).unlink(missing_ok=True)
    if not config.resume and (config.out / "videos").is_dir():
        shutil.rmtree(config.out / "videos")  # those of an earlier evaluation


def _unfinished(out: Path) -> bool:
    """Whether there are episodes that would be lost."""
    if not (out / NAME).is_file() or (out / NAME).read_bytes().count(b"\n") < 2:
        return False
    try:
        return EvalReport.load(out / RESULTS).partial
    except ConfigError:
        return True


def _play(
    config: EvalConfig, ledger: Ledger, seeds: list[int], console: Console, progress: bool
) -> tuple[Timing, list[Clip], bool]:
    """Play what the ledger does not hold yet."""
    done = {entry.result.seed for entry in ledger.entries}
    todo = [seed for seed in seeds if seed not in done]
    if done:
        line = f"{len(seeds) - len(todo)} of {len(seeds)} episodes are finished already"
        console.print(line, markup=False, highlight=False)
    videos = VideoRecorder(config.out / "videos", config.videos)
    videos.adopt(entry.result for entry in ledger.entries)
    if not todo:
        _begin(config, ledger)
        return Timing(), videos.finish(), False
    if config.ray.workers:
        with ProgressBar("evaluating", len(todo), console=console, visible=progress) as bar:
            timing, partial = play_on_ray(config, ledger, todo, bar, lambda: _begin(config, ledger))
        videos.adopt(entry.result for entry in ledger.entries if entry.result.seed not in done)
        return timing, videos.finish(), partial
    with contextlib.closing(make_eval_env(replace(config, episodes=len(todo)))) as env:
        videos.control_hz = embodiment_of(env).control_hz
        with make_eval_agent(config, env) as agent:
            _begin(config, ledger)
            report = evaluate(
                env,
                agent,
                todo,
                listeners=[LedgerKeeper(ledger), *([videos] if config.videos else [])],
                max_steps=config.max_steps,
                keep_partial=True,
                mark_errors=True,
                progress=progress,
                console=console,
            )
    return report.timing, videos.finish(), report.partial


def _report(
    identity: dict[str, Any], entries: Sequence[Entry], seeds: Sequence[int], timing: Timing, partial: bool
) -> EvalReport:
    by_seed = {entry.result.seed: entry for entry in entries}
    order = [by_seed[seed] for seed in seeds if seed in by_seed]
    renderer = next((str(e.result.info["renderer"]) for e in order if "renderer" in e.result.info), "")
    return EvalReport(
        episodes=tuple(entry.result for entry in order),
        config=identity["config"] | {"weights": identity.get("weights", "")},
        versions=identity["versions"],
        renderer=renderer,
        timing=replace(timing, episodes=tuple(entry.result.seconds for entry in order)),
        partial=partial,
        digests=tuple((entry.first, entry.last) for entry in order),
    )


def _protocol(suite: Suite) -> str:
    """The protocol in a sentence, for the page."""
    return (
        "; ".join(f"{key}: {value}" for key, value in suite.protocol.items()) + f". Source: {suite.source}."
    )


def _metrics_of(agent: str) -> Path | None:
    """The curves of the run a checkpoint lies in."""
    for folder in (Path(agent), *list(Path(agent).parents)[:2]):
        if (folder / "metrics.jsonl").is_file() and folder != Path():
            return folder / "metrics.jsonl"
    return None
