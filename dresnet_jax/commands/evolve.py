r"""Finds structures that are good at little cost, by evolution.

    python -m dresnet_jax.evolve --config=configs/digits.py --workdir=runs/evolved \
        --config.train.num_epochs=5 --config.evolution.evaluations=48

Trains each structure for the config's steps, and chooses by validation error,
multiply-adds, parameters and unsteadiness of the loss (NSGA-II). The workdir then holds
evaluations.jsonl, a run of each structure in members/, which evaluate, predict and
train --config.init.workdir= read, report.json and the picture evolution.png. The same
command resumes where it was stopped.
"""

import dataclasses
import itertools
import sys

from dresnet_jax.commands import cli
from dresnet_jax.training import json_files

command = cli.Command(__doc__, "config workdir overwrite compilation_cache json")


@command.main
def main() -> None:
    """Searches, draws, prints."""
    config, directory = command.config(), command.workdir()

    from dresnet_jax.data import prepared
    from dresnet_jax.figures import pictures
    from dresnet_jax.structure.evolution import evolution, space
    from dresnet_jax.structure.evolution.population import Population
    from dresnet_jax.training import experiment, workdir

    command.use_compilation_cache()
    if config.evolution.edges:
        config = experiment.with_own_projections(config)
    exp = experiment.build(config)
    evolution.check(config)
    there = space.of_config(config)
    prepared.require(exp.dataset, config.data.data_dir)
    with workdir.claim(directory, config, overwrite=command.flags.overwrite):
        population = Population(config, directory)
        if population.num_known:
            print(f"{population.num_known} structures were trained before", flush=True)
        asked = config.evolution
        names = [asked.algorithm, *(["random"] if asked.against_random else [])]
        result = {
            name: evolution.search(
                there,
                population,
                algorithm=name,
                population=asked.population,
                evaluations=asked.evaluations,
                seed=config.seed,
            )
            for name in dict.fromkeys(names)
        }
        span = evolution.span(itertools.chain(*result.values()))
        volumes = {
            name: evolution.hypervolumes(each, span) for name, each in result.items()
        }
        front = evolution.front(result[asked.algorithm])
        report = {
            "workdir": str(directory),
            "space": there.size,
            "span": {
                name: ends
                for name, *ends in zip(evolution.OBJECTIVES, *span, strict=True)
            },
            "hypervolume": volumes,
            "front": [
                dataclasses.asdict(one)
                | {"workdir": str(population.member(one.structure))}
                for one in front
            ],
        }
        json_files.write_json(directory / "report.json", report)
        picture = directory / "evolution.png"
        pictures.save(evolution.draw(result, front, volumes), picture)
    print(evolution.table(front, population.member))
    for name, each in volumes.items():
        print(f"{name}: {len(each)} structures, hypervolume {each[-1]:.4f}")
    print(f"picture: {picture}")
    command.finish(report)


if __name__ == "__main__":
    sys.exit(command.run())
