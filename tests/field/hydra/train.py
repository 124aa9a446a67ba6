"""A Hydra application: it is configured by YAML and by name=value, and makes a folder for each run."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Train."""
    folder = hydra.core.hydra_config.HydraConfig.get().runtime.output_dir
    print(f"lr {config.lr}, writes to {folder}", flush=True)
    with open(f"{folder}/model.txt", "w") as file:
        file.write("a model")


if __name__ == "__main__":
    main()
