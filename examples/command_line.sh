#!/bin/sh
# Train, score and forecast from the command line, without a line of Python.
#
#     sh examples/command_line.sh [any option of deltaflow fit]
set -e

base="--config configs/fit/base.yaml --config configs/fit/resnet_flow.yaml"
run=runs/resnet_flow

# After an interruption, the same command with --ckpt_path last continues with the next batch.
deltaflow fit $base --trainer.default_root_dir $run "$@"
deltaflow test $base --ckpt_path best --trainer.default_root_dir $run
deltaflow predict $base --ckpt_path best --trainer.default_root_dir $run \
    --forecasts.path $run/forecasts.csv --forecasts.quantile_levels "[0.1, 0.9]"
head -n 4 $run/forecasts.csv
