"""What other tools call our keys: smp, Ultralytics, fastai, Lightning, mmsegmentation, Keras."""

from collections.abc import Iterable, Mapping

# What is typed here, a key or a group of options, and the words for it elsewhere. Only what takes the same values: no
# number of iterations is one of epochs. `batch` is also `train.batch` and `Batch`.
WORDS: Mapping[str, str] = {
    "encoder": "encoder_name backbone backbone_name model model_name model.name arch architecture network timm_model",
    "encoder.pretrained": "encoder_weights imagenet imagenet_pretrained use_pretrained",
    "encoder.weights_file": "checkpoint ckpt ckpt_path load_from init_cfg weights weights_path pretrained_weights",
    "encoder.freeze_norm": "freeze_bn norm_eval",
    "encoder.drop_path": "drop_path_rate stochastic_depth",
    "decoder.width": "decoder_channels decoder_width channels",
    "decoder.norm": "decoder_use_batchnorm decoder_use_norm norm_cfg norm_layer",
    "decoder.dropout": "dropout_ratio drop_rate dropout_p",
    "optim": "optimizer optimiser opt opt_func optim_wrapper",
    "optim.lr": "learning_rate learningrate lr0 lr_max base_lr max_lr initial_lr init_lr",
    "optim.weight_decay": "wd",
    "optim.momentum": "mom moms",
    "optim.schedule": "scheduler lr_scheduler lr_schedule sched cos_lr param_scheduler",
    "optim.warmup": "warmup_ratio warmup_epochs pct_start",
    "optim.freeze_epochs": "freeze_encoder freeze_backbone",
    "optim.layer_decay": "layer_decay_rate llrd",
    "augmentation": "augment aug augmentations transforms transform batch_tfms item_tfms",
    "augmentation.hflip": "fliplr horizontal_flip hflip_prob random_flip",
    "augmentation.vflip": "flipud flip_vert vertical_flip vflip_prob",
    "augmentation.rotate": "degrees rotation max_rotate rotate_limit",
    "augmentation.hue": "hsv_h",
    "augmentation.saturation": "hsv_s",
    "augmentation.brightness": "hsv_v max_lighting",
    "data.name": "dataset dataset_name dataset_type",
    "data.root": "path dir data_dir data_path data_root dataset_path dataset_dir root_dir datadir",
    "data.images": "img_dir image_dir images_dir imgs imgs_dir image_path images_path img_path x_dir image_folder",
    "data.masks": (
        "mask_dir masks_dir mask_path masks_path ann_dir label_dir labels labels_dir seg_map_path y_dir mask_folder"
    ),
    "data.size": "imgsz img_size image_size input_size crop_size resolution imsize img_shape image_shape",
    "data.tile": "tile_size slide_size window_size",
    "data.mask_suffix": "seg_map_suffix suffix",
    "data.table": "csv csv_file csv_path dataframe",
    "data.split": "val_split valid_pct val_size test_size validation_split train_split val_ratio split_ratio",
    "data.folds": "n_folds num_folds n_splits kfold k_folds",
    "data.classes": "names class_names codes metainfo categories num_classes n_classes nc n_out classes_num",
    "data.ignore_index": "ignore_label void void_label ignore_value void_code",
    "data.binarize": "binary single_cls",
    "data.normalize": "normalization normalisation",
    "data.cache": "cache_images cache_dir",
    "data.passes": "repeats repeat repeat_dataset",
    "data.group": "groups group_by group_col",
    "loss": "loss_fn loss_func loss_name criterion loss_decode loss_type",
    "loss.class_weights": "class_weight cls_weights",
    "loss.label_smoothing": "smoothing label_smooth",
    "tracking": "logger report_to mlflow",
    "tracking.uri": "tracking_uri mlflow_uri",
    "tracking.experiment": "project experiment_name exp_name experiment",
    "train.epochs": "epoch num_epochs n_epoch n_epochs max_epochs num_train_epochs nb_epochs",
    "train.time_budget": "max_time time_limit",
    "train.batch_size": "batch bs batchsize train_batch_size samples_per_gpu mini_batch_size",
    "train.grad_accum": "accumulate accumulate_grad_batches accumulation_steps gradient_accumulation_steps accum",
    "train.precision": "amp fp16 half mixed_precision use_amp bf16",
    "train.seed": "seed random_seed random_state seed_everything manual_seed",
    "train.device": "device devices gpu gpus accelerator cuda",
    "train.workers": "num_workers n_workers workers_per_gpu",
    "train.grad_clip": "clip clip_grad gradient_clip_val max_norm clip_grad_norm",
    "train.ema": "ema_decay model_ema use_ema",
    "train.patience": "early_stopping early_stop early_stopping_patience",
    "train.compile": "torch_compile",
    "train.checkpointing": "gradient_checkpointing with_cp grad_checkpointing",
    "train.deterministic": "reproducible cudnn_deterministic",
    "hydra.run.dir": "output_dir out_dir save_dir work_dir default_root_dir log_dir run_dir name run_name",
    "resume": "resume_from resume_path",
}
OURS = {word: key for key, words in WORDS.items() for word in words.split()}


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return the key or group for a word of another tool; None for an unknown word.

    The last part of one of our keys (`lr`, `epochs`) means this key, in whatever group it is typed.
    """
    word = name.lower()
    last = word.rpartition(".")[2]
    return OURS.get(word) or OURS.get(last) or next((key for key in known if key.rpartition(".")[2] == last), None)
