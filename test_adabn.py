"""Convert a trained run's batch-norm statistics to the target: evaluate, convert, save, evaluate again.

The converted checkpoint is adabn.pth in the run folder.
"""

from collections.abc import Sequence

from torch.utils.data import DataLoader

from models.weights import load_checkpoint_weights
from utils import build, distributed
from utils.scoring.convert_batchnorm import convert_statistics
from utils.run_folder.checkpoint import CONVERTED, model_state, resolve_weights, save_atomic
from utils.config.command_line import load_config
from utils.config.read import to_yaml
from utils.scoring.evaluation import evaluate, iou_table
from utils.training.experiment import start_run
from utils.config.schema import Config


def statistics_loaders(config: Config) -> list[DataLoader]:
    """One finite loader for each domain that ``adabn.domains`` names."""
    samples = {}
    if config.adabn.domains in ("source", "both"):
        samples[build.SOURCE] = build.source_samples(config)
    if config.adabn.domains in ("target", "both"):
        samples[build.TARGET], _ = build.target_samples(config)
    return [build.statistics_loader(config, domain, found) for domain, found in samples.items()]


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "test_adabn")
    folder = build.run_folder(config)
    with start_run(config) as (device, log):
        model = build.build_network(config, device)
        log.text(load_checkpoint_weights(model, resolve_weights(config.adabn.weights or str(folder))))
        table, classes = build.class_table(config), config.test.eval_classes
        test_loader = build.evaluation_loader(config, build.test_samples(config), config.test)

        before = evaluate(model, test_loader, config.num_classes, device, title="before")
        log.text(f"before conversion\n{iou_table(before, table, classes)}")
        convert_statistics(model, statistics_loaders(config), config.adabn.mode, device)
        if distributed.is_main():
            (folder / "config_adabn.yaml").write_text(to_yaml(config))
            save_atomic(model_state(config, model), folder / CONVERTED)
        after = evaluate(model, test_loader, config.num_classes, device, title="after")
        log.text(f"after conversion ({config.adabn}), saved as {folder / CONVERTED}\n{iou_table(after, table, classes)}")


if __name__ == "__main__":
    main()
