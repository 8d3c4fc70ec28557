"""Every field of a run's config with its default; a dataset's file changes a few."""

import copy
import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Returns the fields that all configs share."""
    config = ml_collections.ConfigDict()
    # Seed of the initialisation, the order of the examples, augmentation, dropout.
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    # Name in the catalogue: digits, mnist, fashion_mnist, cifar10, cifar100,
    # svhn_cropped, tiny_imagenet, imagenet2012, folder, synthetic.
    config.data.dataset = "digits"
    # Where prepared datasets lie. digits and synthetic need no preparation.
    config.data.data_dir = "~/dresnet_jax_data"
    # Examples of one step, over all devices.
    config.data.batch_size = 128
    # How examples reach the devices: resident (the whole set lies in their memory),
    # streaming (read from files all along), or auto, which takes resident where the set
    # has one size of image and fits.
    config.data.mode = "auto"
    # Streaming: threads that read, and processes of as many threads that read next to
    # the one that trains; 0 for none. Each thread holds the batches of one call.
    config.data.num_threads = 8
    config.data.num_workers = 0
    # Whether another example stands in for one that cannot be read (evaluation leaves
    # it out); else it ends the run.
    config.data.skip_corrupt = False
    # Examples held out of training for validation; None for the catalogue's number.
    config.data.validation_examples = config_dict.placeholder(int)
    # Examples of the training split that are used, its first ones; None for all.
    config.data.train_examples = config_dict.placeholder(int)
    # Shape, classes and examples per split of `synthetic`; None for real datasets,
    # which say it themselves; imagenet2012 and folder are brought to image_size.
    config.data.image_size = config_dict.placeholder(int)
    config.data.channels = config_dict.placeholder(int)
    config.data.num_classes = config_dict.placeholder(int)
    config.data.num_examples = config_dict.placeholder(int)
    # Mean and standard deviation by which pixels, scaled to [0, 1], are normalised, a
    # value for each channel; None for those of the dataset's training images. Weights
    # from elsewhere may expect others.
    config.data.mean = config_dict.placeholder(tuple)
    config.data.std = config_dict.placeholder(tuple)
    # Grey level, 0 to 255, that shows where an image is transparent; and the rule by
    # which images become pixels, which docs/data.md states: 1 is that of earlier runs.
    config.data.background = 255
    config.data.pixel_rule = 2
    # Augmentation: zero pixels added a side before a random crop; random left-right
    # flip.
    config.data.crop_padding = 0
    config.data.flip = False
    # Side of a square set to the mean, pixels (cut-out); 0 for none.
    config.data.cut_out = 0
    # alpha of mix-up and of cut-mix, 0 for none; with both, a coin picks one a batch.
    config.data.mix_up = 0.0
    config.data.cut_mix = 0.0
    # On the host, by streaming alone: least share of the image that a
    # random-resized-crop keeps (0.08 is published for ImageNet), 0 for none; layers and
    # magnitude (0 to 10) of RandAugment, 0 layers for none.
    config.data.min_crop_area = 0.0
    config.data.rand_augment_layers = 0
    config.data.rand_augment_magnitude = 9.0

    config.model = ml_collections.ConfigDict()
    # A name of docs/models.md, such as resnet50, resnetv2_18, convnext_tiny; with d
    # before it, it has learned connections: dresnet50.
    config.model.name = "dresnet18"
    # cifar (3x3), pooled (3x3, max-pool), imagenet (7x7/2, max-pool), deep (three 3x3,
    # max-pool), strided (3x3/2), patches (4x4/4), or own, which is the model's.
    config.model.stem = "cifar"
    # Channels of the stem; None for the model's own number, 64 of most. Stages have a
    # multiple of them, 1, 2, 4 and 8 of most, and bottlenecks put out 4 times as many.
    # 16.5 has 16, then 33, 66 and 132: any number of parameters can be come near.
    config.model.width = config_dict.placeholder(float)
    # Residual blocks of each stage; None for the model's own number.
    config.model.blocks_per_stage = config_dict.placeholder(tuple)
    # Channels between the convolutions of each block, a number for each, 0 for the
    # block's own; None for that of all.
    config.model.hidden = config_dict.placeholder(tuple)
    # None for the model's own. Block: basic, bottleneck, bottleneck_v1 (its stride is
    # the first convolution's), preact_basic, preact_bottleneck, separable, inverted,
    # convnext or mixed. Norm: batch, group, layer (of a pixel's channels) or none.
    # Activation: relu, relu6, gelu or silu. Attention in each block: none, se, eca or
    # cbam.
    # Shortcut: identity (a 1x1 convolution where the shape changes), conv (in all
    # blocks but the first), pool (average, then 1x1), pad (zeros for new channels),
    # bare (a 1x1 without norm), kept (only where the shape is) or none.
    config.model.block = config_dict.placeholder(str)
    config.model.norm = config_dict.placeholder(str)
    config.model.activation = config_dict.placeholder(str)
    config.model.attention = config_dict.placeholder(str)
    config.model.shortcut = config_dict.placeholder(str)
    # Numbers, from 1, of the stages that are dilated instead of strided.
    config.model.dilated_stages = ()
    # Learned residual x + a F(x): an a for each block (scalar), for each channel
    # (channel), or none; None for the model's own, which only ConvNeXt has. Where a
    # starts: 0 is ReZero's, 1e-4 by channel LayerScale's.
    config.model.residual_scale = config_dict.placeholder(str)
    config.model.residual_start = 1.0
    # Whether the last norm of each block starts at 0, so that the block adds nothing.
    config.model.zero_last = False
    # Share of the examples for which the last block is left out in training; it grows
    # evenly from the first block's, 0.
    config.model.drop_path = 0.0
    # Dropout rate before the classifier.
    config.model.dropout = 0.0
    # Of the computation: float32 or bfloat16. Parameters are float32.
    config.model.dtype = "float32"

    exits = config.model.exits = ml_collections.ConfigDict()
    # Blocks, from 1, after which a classifier of its own stands besides the last one.
    exits.after = ()
    # What each counts in the gradient of the blocks, the last counting 1: a number for
    # all, or one for each. The classifiers learn from the whole of their losses.
    exits.loss_weights = config_dict.FieldReference(0.3, field_type=object)
    # linear, or conv, which has a 1x1 convolution to 4 times the channels, norm and
    # activation before it pools; "" for the network's own.
    exits.head = ""
    # What each answers, of its own logits and those before: none (its own), mean,
    # learned (weights), or attention (weights made from the image).
    exits.fusion = "none"
    # Whether each learns how probable it is that its answer is right.
    exits.learn_confidence = False

    # Gates by which each example runs or skips each block that keeps the shape: the
    # share of the examples that are to run it, in (0, 1), or None for no gates; and the
    # factor of its squared distance from the share that does, which is added to the
    # loss.
    conditional = config.model.conditional = ml_collections.ConfigDict()
    conditional.target_rate = config_dict.placeholder(float)
    conditional.penalty = 1.0

    mixture = config.model.mixture = ml_collections.ConfigDict()
    # Of the block mixed. Its operations: names, the same for each block, or a list of
    # names for each, as (("conv3",), ("pool", "deep")); one alone has no weight.
    mixture.operations = (
        *("none", "identity", "pool", "depthwise"),
        *("conv3", "conv5", "dilated", "deep"),
    )
    # Their weights: softmax (of the block), gumbel (of the block, one operation for
    # each image) or routed (of the image).
    mixture.weights = "softmax"
    # That logits are divided by, at the start and after this many batches of training,
    # between which it falls by the same factor each.
    mixture.temperature_start = 1.0
    mixture.temperature_end = 0.1
    mixture.temperature_steps = 1000
    # Share of the images that do without an operation that has no kernel, at the start
    # of training; after temperature_steps it is 0. Else such operations win early.
    mixture.skip_drop = 0.3
    # Added to the loss: this times the parameters in use, each operation's by its
    # weight and as a part of the largest's; and, if routed, this times the squared
    # coefficient of variation of the operations' use.
    mixture.price = 0.0
    mixture.balance = 0.01

    connections = config.model.connections = ml_collections.ConfigDict()
    # Who reads whom: stage_ends (all of its own stage, of earlier ones the last block;
    # in stages of more than 4 blocks only some read, and are read), dense, none,
    # within_stage, powers_of_two, dilated:<d>, last:<m>, a free graph (triangular,
    # watts_strogatz:<k>:<p>:<seed>, erdos_renyi:<p>:<seed> or
    # barabasi_albert:<m>:<seed>), or a list of (reader, source) such as
    # ((3, 1), (8, 2)); None for the model's own: stage_ends, or dense of the published
    # dresnet18_seed and dcnn18. Read by the models whose name begins with d.
    connections.topology = config_dict.placeholder(object)
    # The edge from each block to the one before it: fixed, at weight 1, or learned as
    # all others; a list of edges then names it, or it is absent, and block 0 is the
    # stem, and block n + 1 the classifier.
    connections.base = "fixed"
    # Gate function: sigmoid, gauss, identity, tanh, hard_sigmoid or softmax.
    connections.gate = "sigmoid"
    # What has a weight of its own: per_edge, per_channel, or by_distance (shared by all
    # connections of one distance).
    connections.weights = "per_edge"
    # F(w) of every connection at the start, in (0, 1), or bounded (0.5, or less where
    # sources are not projected and many), 1/n^2 (of n blocks), closed (0; of identity,
    # tanh and hard_sigmoid) or published; None for bounded. softmax starts a block's
    # sources equal; bounded lets it choose none.
    connections.initial_gate = config_dict.placeholder(object)
    # What has a projection of its own: per_edge, per_stage (each pair of a source's and
    # a reader's stage), between_stages (each pair of different stages, through
    # projection_rank channels at most; nothing is projected inside a stage), matching
    # (each edge between different channels), or none: sources are only pooled, and need
    # the reader's channels. None for the model's own: between_stages, or per_edge of
    # the published dresnet18_seed and dcnn18.
    connections.projection = config_dict.placeholder(str)
    connections.projection_rank = 8
    # Whether sources are divided by the root mean square of their channels.
    connections.normalise_sources = False
    # gauss: k of exp(-k w^2) at the start, above 0, and who shares one:
    # global, per_block or per_edge.
    connections.sharpness = 1.0
    connections.sharpness_granularity = "global"
    # How the sum is computed: folded, stacked (deep stages; projections per_stage or
    # none), reference (the formula), or auto, which says what it chose.
    connections.form = "auto"
    # stacked: blocks in one turn of its loop.
    connections.unroll = 1
    # Whether projections have a bias; None for what the model's convolutions have.
    connections.projection_bias = config_dict.placeholder(bool)

    growth = config.growth = ml_collections.ConfigDict()
    # What changes while the network trains, one event after the other: connections (are
    # added), width (channels inside of blocks are divided), depth (a block is added) or
    # prune (connections are removed); () for nothing.
    growth.events = ()
    # Epochs before the first event, and from one to the next.
    growth.every_epochs = 5
    # Epochs after an event at whose end validation accuracy decides: where it is by
    # more than max_loss below what it was before, the run goes back to before.
    growth.trial_epochs = 1
    growth.max_loss = 0.0
    # Who is chosen: by score, or at random, for comparison.
    growth.choose = "score"
    # Connections that one event adds or removes. Those that may be added are first
    # ranked by their gradients; this many are then tried: each alone is fitted to some
    # batches, by some steps of L-BFGS.
    growth.connections = 2
    growth.candidates = 16
    growth.trial_batches = 8
    growth.trial_steps = 15
    # Channels that are divided: those above a quantile of all by entropy, gradient,
    # curvature or random; in each block a multiple of the bucket. Noise of the copies'
    # weights, relative to each.
    growth.channel_rule = "entropy"
    growth.quantile = 0.8
    growth.bucket = 8
    growth.noise = 0.0
    # What a network may have at most, parameters, multiply-adds of one image and
    # measured seconds of a training step; None for any number.
    growth.max_params = config_dict.placeholder(int)
    growth.max_multiply_adds = config_dict.placeholder(int)
    growth.max_step_seconds = config_dict.placeholder(float)
    # Steps after each event in which the learning rate rises from 0 to where it was; 0
    # for none.
    growth.warmup_steps = 0

    search = config.search = ml_collections.ConfigDict()
    # Share of the training split, its last examples, from which the weights of
    # operations and connections learn, before each step of the network, which learns
    # from the rest (Liu et al. 2019, DARTS); 0 where all learn from all.
    search.share = 0.0
    # Their learning rate, of Adam.
    search.learning_rate = 3e-3
    # Whether they take the network as it is (first), or as it is a step of gradient
    # later (second), which takes three times as long.
    search.order = "first"

    evolution = config.evolution = ml_collections.ConfigDict()
    # What evolve chooses among. Fewest and most blocks of each stage; None for 1, and
    # for as many as the model has.
    evolution.min_blocks = config_dict.placeholder(tuple)
    evolution.max_blocks = config_dict.placeholder(tuple)
    # Channels inside of the blocks of each stage, as parts of what the block would
    # have, in whole buckets (growth.bucket).
    evolution.widths = (0.5, 1.0)
    # Whether each learned connection is chosen, or there are none; and kinds of block,
    # () for the model's own.
    evolution.edges = True
    evolution.blocks = ()
    # How: nsga2, or random, for comparison. Structures that live at a time and are
    # trained at once, and how many are trained in all, each for the config's steps.
    evolution.algorithm = "nsga2"
    evolution.population = 16
    evolution.evaluations = 128
    # Whether as many are then drawn at random, trained and drawn for comparison.
    evolution.against_random = False
    # Whether a structure begins with the weights of the largest one trained before
    # that it has all of, or from scratch.
    evolution.inherit = True
    # Structures of equal shapes that one program trains side by side.
    evolution.together = 1

    config.init = ml_collections.ConfigDict()
    # Run whose newest weights this one starts from, where both have the same leaf; and
    # a regular expression of the paths, as params/head/linear/kernel, that start from
    # scratch.
    config.init.workdir = ""
    config.init.skip = ""

    config.optimizer = ml_collections.ConfigDict()
    # sgd (Nesterov momentum) or adamw.
    config.optimizer.name = "sgd"
    # Peak learning rate, after warmup_fraction of the run; then cosine to 0.
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_fraction = 0.05
    # Momentum of sgd; b1 and b2 of adamw.
    config.optimizer.momentum = 0.9
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # On kernels only. For sgd it is added to the gradient; for adamw it is decoupled.
    config.optimizer.weight_decay = 5e-4
    # Global norm above which gradients are scaled down; 0 for never.
    config.optimizer.clip_norm = 1.0
    # Learning rate of gate weights and sharpness, as a multiple of the base learning
    # rate. At 1 sigmoid gates hardly move.
    config.optimizer.gate_multiplier = 10.0
    # Regular expression of the paths, as head/linear/kernel, of parameters that are not
    # trained; "" for none.
    config.optimizer.freeze = ""
    # Whether batch norms whose scale and bias are not trained use their running
    # statistics, and keep them; else they continue with those of each batch.
    config.optimizer.freeze_statistics = True
    # Parts of the run, at its start and at its end, in which gates are frozen.
    config.optimizer.gate_freeze_first = 0.0
    config.optimizer.gate_freeze_last = 0.0

    # The axes of the mesh of devices; None for what is left, or for the slices found.
    # replica: copies of the rest, one or more a slice of chips. data: the batch is
    # split. fsdp: the batch, and parameters, averages and optimiser state too.
    config.sharding = ml_collections.ConfigDict()
    config.sharding.replica = config_dict.placeholder(int)
    config.sharding.data = config_dict.placeholder(int)
    config.sharding.fsdp = 1
    # Whose statistics norms use in training: global (of the whole batch) or per_shard
    # (of each device's examples, without communication).
    config.sharding.batch_norm = "global"

    config.train = ml_collections.ConfigDict()
    # Length of the run: num_steps if given, else num_epochs.
    config.train.num_steps = config_dict.placeholder(int)
    config.train.num_epochs = 30
    # Steps dispatched together, by a loop in the program: more than 1 where the host is
    # slower than the devices. On a CPU, where convolutions in a loop are slow, 1.
    config.train.steps_per_call = 1
    # Parts of a batch computed one after the other, to need less memory; norms see one
    # part at a time.
    config.train.accumulate_steps = 1
    config.train.label_smoothing = 0.0
    # Added to the loss: this times the sum of |F(w)| over all connections.
    config.train.gate_penalty = 0.0
    # Decay of the averaged parameters that are then evaluated; 0 for no average.
    config.train.ema_decay = 0.0
    # Steps between log lines and between checkpoints; evaluation on the validation
    # split every eval_every_epochs. Both of the last also at the end.
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 200
    config.train.eval_every_epochs = 1
    # Checkpoints kept: how many of the newest, two at least; those of the multiples of
    # a step, 0 for none; and how many of those with the highest validation accuracy,
    # for which every evaluated step has one.
    config.train.keep_checkpoints = 3
    config.train.keep_every_steps = 0
    config.train.keep_best = 0
    # Which step the run reports at its end, the only one that sees the test split: the
    # last, or the best, which is the first of those kept by keep_best.
    config.train.report_on = "last"
    # Where the loss or its gradient is not finite: stop, or skip, which leaves the
    # state as it was before that batch and stops after 10 such batches in a row.
    config.train.on_non_finite = "stop"
    return config.lock()


def fields(tree: Any, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path, after `group`, and the value of each field that is no group."""
    for name in tree:
        value = tree[name]
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from fields(value, f"{group}{name}.")
        else:
            yield group + name, value


def replace(
    config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a copy of a config in which some fields have other values.

    Args:
      config: of any kind.
      values: by the path of the field, such as {"model.width": 8}.

    Raises:
      KeyError: there is no such field.
    """
    changed = copy.deepcopy(config).unlock()
    for path, value in values.items():
        *groups, name = path.split(".")
        group = functools.reduce(operator.getitem, groups, changed)
        if name not in group:
            raise KeyError(path)
        try:
            group[name] = value
        except TypeError:  # Such as a list for a word.
            with changed.ignore_type():
                group[name] = value
    return changed.lock()
