"""Searches for learning rate and number of queries with Optuna; trials that lag behind are pruned by a callback.

python examples/tune.py my_data --trials 20 --epochs 30        pip install optuna
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna

import detrkit
from detrkit.config import load_config


class Prune(detrkit.Callback):
    """Reports the AP of every evaluation, and ends the run of a trial that is worse than the others were by then."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_evaluation_end(self, run, metrics) -> None:
        """Report the AP of an evaluation; end the run if Optuna asks for it."""
        self.trial.report(metrics.AP, step=run.epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned  # passes through detrkit.train to Optuna, which marks the trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset's folder")
    parser.add_argument("--recipe", default="small", help="settings that the trials start from: a name or a file")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30, help="of a trial")
    parser.add_argument("--out", default="runs/tune", help="folder of the trials; the same one goes on with its study")
    args = parser.parse_args()
    out = Path(args.out)

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 3e-3, log=True)
        queries = trial.suggest_categorical("num_queries", [30, 100, 300])
        config = load_config(args.recipe, data=args.data).changed(
            model={"num_queries": queries},
            optim={
                "lr": lr,
                "lr_backbone": trial.suggest_float("backbone_factor", 0.05, 1.0, log=True) * lr,
                "epochs": args.epochs,
                "lr_drop": max(1, args.epochs * 4 // 5),
            },
            run={"out": str(out / f"trial-{trial.number:03d}"), "pictures": False},
        )
        metrics = detrkit.train(config, callbacks=[Prune(trial)], shorten_warmup=True).metrics
        assert metrics is not None, "a study needs a validation split"
        return metrics.AP

    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="tune",
        storage=f"sqlite:///{out / 'study.db'}",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=args.epochs // 5),
    )
    study.optimize(objective, n_trials=args.trials)
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    best = study.best_trial
    print(f"{len(study.trials)} trials, {pruned} pruned; best AP {100 * study.best_value:.1f}, of trial {best.number}:")
    for name, value in study.best_params.items():
        print(f"  {name}: {value:.3g}")
    print(f"its run: {out / f'trial-{best.number:03d}'}")


if __name__ == "__main__":
    main()
