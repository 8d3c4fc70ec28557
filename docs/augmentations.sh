#!/bin/sh
# Draws the pictures of docs/data.md: augmentations.sh DATA_DIR, where Fashion-MNIST lies.
for field in crop_padding=4 flip=True cut_out=10 mix_up=1.0 cut_mix=1.0 \
    min_crop_area=0.25 rand_augment_layers=2; do
  python -m dresnet_jax.preview --config=configs/fashion_mnist.py --config.seed=4 \
    --config.data.data_dir="$1" --config.data.crop_padding=0 \
    --config.data.flip=False --config.data.$field \
    --out="docs/images/augment_${field%%=*}.png" || exit 1
done
