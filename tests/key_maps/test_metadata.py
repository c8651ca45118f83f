"""The metadata reader: everything the trainers write is shown, nothing is dropped, and nothing
hostile stops it.
"""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lora_locksmith.files.header import read_header
from lora_locksmith.messages import Message, Speaker, catalog
from lora_locksmith.report.labels import label_id
from lora_locksmith.report.metadata import (
    METADATA_TABLE,
    MetadataTableError,
    metadata_table,
    read_metadata,
    read_table,
    trigger_words_of,
    with_words,
)

ROOT = Path(__file__).resolve().parents[2]


BUCKETS = {
    "0": {"resolution": [832, 1216], "count": 50},
    "1": {"resolution": [1024, 1024], "count": 200},
}


def sd_scripts(**changes) -> dict[str, str]:
    """What sd-scripts' train_network.py writes without a dataset config: every value through str()
    or json.dumps().
    """
    values = {
        "ss_session_id": 1234567890,
        "ss_training_started_at": 1690000000.5,
        "ss_training_finished_at": 1690009060.5,
        "ss_output_name": "ohwx",
        "ss_learning_rate": 0.0001,
        "ss_text_encoder_lr": [5e-05, 5e-05],
        "ss_unet_lr": None,
        "ss_num_train_images": 250,
        "ss_num_reg_images": 0,
        "ss_num_epochs": 10,
        "ss_steps": 1500,
        "ss_epoch": 10,
        "ss_lowram": False,
        "ss_network_module": "networks.lora",
        "ss_network_dim": 16,
        "ss_network_alpha": 8.0,
        "ss_network_dropout": None,
        "ss_mixed_precision": "bf16",
        "ss_v2": False,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_clip_skip": None,
        "ss_seed": 42,
        "ss_noise_offset": 0.0357,
        "ss_min_snr_gamma": 5.0,
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
        "ss_lr_scheduler": "cosine",
        "ss_sd_scripts_commit_hash": "25f961bc77fbbbdb5c4dbd8ff8b0e5c0d2a5e0c5",
        "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
        "ss_sd_model_hash": "be9edd61",
        "ss_new_sd_model_hash": "31e35c80" * 8,
        "ss_resolution": (1024, 1024),
        "ss_caption_dropout_rate": 0.05,
        "ss_enable_bucket": True,
        "ss_dataset_dirs": json.dumps({"10_ohwx man": {"n_repeats": 10, "img_count": 25}}),
        "ss_reg_dataset_dirs": json.dumps({}),
        "ss_tag_frequency": json.dumps(
            {"10_ohwx man": {"ohwx man": 25, "solo": 23, "smile": 22, "outdoors": 5}}
        ),
        "ss_bucket_info": json.dumps({"buckets": BUCKETS, "mean_img_ar_error": 0.01}),
        "sshs_model_hash": "ab" * 32,
        "sshs_legacy_hash": "cdcdcdcd",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "ohwx",
        "modelspec.resolution": "1024x1024",
        "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 16384,
    }
    return {key: str(value) for key, value in (values | changes).items()}


def rows(found, section: str) -> dict[str, str]:
    return dict(found.sections.get(section, ()))


def words(found) -> dict[str, str]:
    return {word.word: "; ".join(word.evidence) for word in found.trigger_words}


def test_sd_scripts():
    found = read_metadata(sd_scripts())
    assert found.unknown == () and found.problems == ()
    training, network = rows(found, "Training"), rows(found, "Network")
    assert (
        training["Steps"] == "1500"
        and training["Learning rate"] == "0.0001"
        and training["Min SNR gamma"] == "5"
    )
    assert (
        training["Learning rate, text encoder"] == "5e-05, 5e-05"
        and training["Noise offset"] == "0.0357"
    )
    assert training["Started"] == "2023-07-22 04:26:40 UTC" and training["Duration"] == "2 h 31 min"
    assert "Clip skip" not in training, "None means not set"
    assert (network["Rank (dim)"], network["Alpha"]) == ("16", "8")
    assert rows(found, "Description")["Thumbnail"] == "an image (jpeg) of 12 KB"
    assert rows(found, "Dataset")["Bucket sizes"] == "832x1216: 50, 1024x1024: 200"
    assert rows(found, "Dataset")["Folder 10_ohwx man"] == "25 images, repeated 10 times"
    assert found.base_model == ("sd_xl_base_1.0.safetensors", "31e35c80" * 8)
    assert found.hashes == {"sshs_model_hash": "ab" * 32, "sshs_legacy_hash": "cdcdcdcd"}
    assert found.resolution == "1024x1024"
    assert found.trainer_version == "sd-scripts, commit 25f961bc77fbbbdb5c4dbd8ff8b0e5c0d2a5e0c5"


def test_tags_and_trigger_words_with_their_evidence():
    found = read_metadata(sd_scripts())
    assert found.tags.total == 4 and found.tags.images == 25
    assert found.tags.most[:2] == (("ohwx man", 25, 1.0), ("solo", 23, 0.92))
    assert words(found).keys() == {
        "ohwx man",
        "solo",
    }, "smile stands in 22 of 25 captions, which is not nearly all"
    assert (
        "10_ohwx man" in words(found)["ohwx man"]
        and "25 of the 25 captions" in words(found)["ohwx man"]
    )
    assert read_metadata(sd_scripts(), most_tags=1).tags.most == (("ohwx man", 25, 1.0),)
    assert read_metadata(sd_scripts(), most_tags=1).tags.total == 4


def test_tags_are_summed_without_regularisation_images():
    tags = {
        "5_me": {"me": 10, "hat": 2},
        "2_more": {"me": 5, "hat": 3},
        "1_man": {"man": 100, "hat": 100},
    }
    found = read_metadata(
        sd_scripts(
            ss_tag_frequency=json.dumps(tags),
            ss_dataset_dirs=json.dumps(
                {
                    "5_me": {"n_repeats": 5, "img_count": 10},
                    "2_more": {"n_repeats": 2, "img_count": 10},
                }
            ),
            ss_reg_dataset_dirs=json.dumps({"1_man": {"n_repeats": 1, "img_count": 100}}),
        )
    )
    assert found.tags.most == (("me", 15, 0.75), ("hat", 5, 0.25)) and found.tags.images == 20
    assert "man" not in words(found) and "me" in words(found)


def test_no_share_and_no_guess_where_images_are_not_counted():
    sentences = {"data": {f"a sentence of caption {number}": 1 for number in range(40)}}
    found = read_metadata({"ss_tag_frequency": json.dumps(sentences)})
    assert found.tags.total == 40 and found.tags.images is None and found.tags.most[0].share is None
    assert found.trigger_words == ()
    found = read_metadata(
        {"ss_tag_frequency": json.dumps({"data": {"zwx": 30, "a dog": 29, "grass": 20}})}
    )
    assert (
        words(found).keys() == {"zwx", "a dog"}
        and "the commonest tag has 30" in words(found)["a dog"]
    )


def test_dataset_configs_of_sd_scripts_and_musubi():
    subset = {
        "img_count": 20,
        "num_repeats": 3,
        "image_dir": "faces",
        "class_tokens": "qrx",
        "is_reg": False,
        "shuffle_caption": True,
    }
    regular = {
        "img_count": 50,
        "num_repeats": 1,
        "image_dir": "man",
        "class_tokens": "man",
        "is_reg": True,
    }
    dataset = {
        "resolution": [768, 512],
        "batch_size_per_device": 2,
        "num_train_images": 60,
        "subsets": [subset, regular],
    }
    musubi = {
        "resolution": [960, 544],
        "num_repeats": 1,
        "video_directory": "clips",
        "target_frames": [1, 25],
    }
    found = read_metadata(
        {"ss_datasets": json.dumps([dataset, musubi]), "modelspec.resolution": "1280x720"}
    )
    assert found.resolution == "768x512, 960x544", (
        "not modelspec's, which is a default of the trainer"
    )
    shown = rows(found, "Dataset")
    assert (
        shown["Dataset 1, faces"]
        == "20 images, repeated 3 times; class tokens qrx; captions shuffled"
    )
    assert "videos in clips" in shown["Dataset 2"] and "frames [1, 25]" in shown["Dataset 2"]
    assert words(found).keys() == {"qrx"}
    assert (
        "can be only the base model's"
        in read_metadata({"modelspec.resolution": "1280x720"}).resolution
    )


def test_lycoris_arguments():
    arguments = {
        "algo": "lokr",
        "conv_dim": "8",
        "factor": "-1",
        "dora_wd": "True",
        "preset": "full",
        "something_new": "1",
    }
    shown = rows(
        read_metadata(
            sd_scripts(ss_network_module="lycoris.kohya", ss_network_args=json.dumps(arguments))
        ),
        "Network",
    )
    assert (shown["LyCORIS algorithm"], shown["Rank of convolutions"], shown["DoRA"]) == (
        "lokr",
        "8",
        "yes",
    )
    assert shown["Network argument something_new"] == "1"
    split = rows(read_metadata({"ss_network_args": json.dumps({"split_qkv": "True"})}), "Network")
    assert split["q, k, v trained apart (split_qkv)"] == "yes"
    resized = read_metadata(sd_scripts(ss_network_dim="Dynamic", ss_network_alpha="Dynamic"))
    assert rows(resized, "Network")["Rank (dim)"] == "Dynamic" and resized.problems == ()


def test_ai_toolkit():
    """toolkit/metadata.py: what is no text becomes JSON; `meta` of the config is kept."""
    software = {
        "name": "ai-toolkit",
        "repo": "https://github.com/ostris/ai-toolkit",
        "version": "0.7.2",
    }
    metadata = {
        "name": "my_lora",
        "version": "1.0",
        "training_info": json.dumps({"step": 2000, "epoch": 12}),
        "format": "pt",
    }
    metadata |= {
        "software": json.dumps(software),
        "ss_base_model_version": "flux.1",
        "ss_output_name": "my_lora",
    }
    found = read_metadata(metadata | {"ss_tag_frequency": json.dumps({"1_p3rs0n": {"p3rs0n": 1}})})
    assert (
        found.trainer_version == "AI-Toolkit 0.7.2" and rows(found, "Training")["Steps"] == "2000"
    )
    assert "AI-Toolkit" in words(found)["p3rs0n"] and found.unknown == () and found.problems == ()
    old = read_metadata({"software": "ai-toolkit"})
    assert (
        rows(old, "Software") == {"Software": "ai-toolkit"}
        and old.problems == ()
        and old.trainer_version == ""
    )


def test_onetrainer():
    config = {
        "base_model_name": "black-forest-labs/FLUX.1-dev",
        "lora_rank": 16,
        "lora_alpha": 1.0,
        "learning_rate": 0.0003,
    }
    config |= {
        "resolution": "512,768",
        "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01},
        "concepts": None,
        "tensorboard": True,
    }
    metadata = {
        "ot_branch": "master",
        "ot_revision": "9b2a6d8",
        "ot_config": json.dumps(config),
        "modelspec.hash_sha256": "0x" + "a" * 64,
    }
    found = read_metadata(metadata | {"ss_base_model_version": "sdxl_"})
    assert found.trainer_version == "OneTrainer, branch master, revision 9b2a6d8"
    assert (
        found.base_model.name == "black-forest-labs/FLUX.1-dev"
        and found.resolution == "512x512, 768x768"
    )
    assert (
        rows(found, "Training")["Optimizer"] == "ADAMW" and rows(found, "Network")["Alpha"] == "1"
    )
    assert rows(found, "Software")["OneTrainer settings"] == "8 settings in the file"
    assert found.hashes == {"modelspec.hash_sha256": "0x" + "a" * 64}


def test_simpletuner():
    """save_hooks.py _build_modelspec_metadata: tags of more than half of all captions, and no
    number of images.
    """
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "global_step": "5000",
        "modelspec.architecture": "flux-dev/lora",
        "format": "pt",
    }
    metadata |= {
        "modelspec.implementation": "diffusers",
        "modelspec.title": "run",
        "modelspec.resolution": "1024x1024",
    }
    metadata |= {
        "trained_words": "xyz person",
        "ss_tag_frequency": json.dumps({"mine": {"xyz person": 40, "photo": 25}}),
    }
    found = read_metadata(metadata | {"modelspec.comment": "note"})
    assert found.unknown == () and rows(found, "Training")["Steps"] == "5000"
    assert (
        words(found).keys() == {"xyz person"}
        and "trained_words says so" in words(found)["xyz person"]
    )


def test_what_peft_and_diffusers_write(tmp_path):
    import torch
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft import LoraConfig

    config = LoraConfig(
        r=16,
        lora_alpha=32,
        use_rslora=True,
        target_modules=["to_q", "to_k"],
        rank_pattern={"to_k": 4},
    ).to_dict()
    config = {
        name: sorted(value) if isinstance(value, set) else value for name, value in config.items()
    }
    LoraBaseMixin._save_lora_weights(
        save_directory=tmp_path,
        lora_layers={"transformer": {"to_q.lora_A.weight": torch.zeros(16, 8)}},
        lora_metadata={"transformer": config},
        is_main_process=True,
        weight_name="x.safetensors",
        save_function=None,
        safe_serialization=True,
    )
    found = read_metadata(read_header(tmp_path / "x.safetensors").metadata)
    shown = rows(found, "Network")
    assert (
        shown["transformer: rank"],
        shown["transformer: alpha"],
        shown["transformer: rsLoRA"],
    ) == ("16", "32", "yes")
    assert (
        shown["transformer: DoRA"] == "no" and shown["transformer: target modules"] == "to_k, to_q"
    )
    assert shown["transformer: rank patterns"] == "to_k = 4" and shown["transformer: kind"] in (
        "LORA",
        "PeftType.LORA",
    )
    assert found.problems == () and found.unknown == ()


def test_stated_trigger_words_come_first():
    found = read_metadata(
        sd_scripts(
            ssmd_keywords="one, two",
            **{
                "modelspec.trigger_phrase": "a phrase",
                "modelspec.usage_hint": "Trigger word: hinted",
            },
        )
    )
    assert (
        list(words(found))[:3] == ["one, two", "a phrase", "hinted"]
        and list(words(found))[3] == "ohwx man"
    )
    assert words(read_metadata({"trained_words": '["a", "b"]'})).keys() == {"a", "b"}


def test_unknown_keys_are_shown_with_their_true_length():
    found = read_metadata({"mystery": "z" * 5000, "short": "s", "": "e"})
    assert dict(found.unknown) == {
        "mystery": "z" * 300 + " ... (5,000 characters)",
        "short": "s",
        "(no name)": "e",
    }
    many = read_metadata({f"key {number}": "v" for number in range(3000)})
    assert len(many.unknown) == 1000 and many.problems == (
        "2,000 more unknown keys are not listed",
    )


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"ss_tag_frequency": '{"a": {"b": 1}'}, "ss_tag_frequency: broken JSON"),
        ({"ss_tag_frequency": "[1]"}, "ss_tag_frequency: broken JSON (it is not an object)"),
        (
            {"ss_tag_frequency": '{"a": {"b": "x"}}'},
            "ss_tag_frequency: 'a' holds something other than tag counts",
        ),
        ({"ss_steps": "many"}, "ss_steps: 'many' is not a number"),
        ({"ss_steps": "1.5"}, "ss_steps: '1.5' is not a whole number"),
        ({"ss_learning_rate": "nan"}, "ss_learning_rate: 'nan' is not a number"),
        ({"ss_v2": "perhaps"}, "ss_v2: 'perhaps' is neither true nor false"),
        ({"ss_training_started_at": "1e30"}, "ss_training_started_at: '1e30' is not a time"),
        (
            {"lora_adapter_metadata": "[" * 100_000},
            "lora_adapter_metadata: broken JSON (it is nested too deep)",
        ),
        (
            {"ot_config": "9" * 10_000_000},
            "ot_config: not read, because it is too long (10,000,000 characters)",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else next(iter(value)),
)
def test_what_is_broken_is_named_and_still_shown(metadata, problem):
    found = read_metadata(metadata)
    assert len(found.problems) == 1 and found.problems[0].startswith(problem)
    assert found.sections or problem.endswith("tag counts")


def hostile_value(chance: random.Random, depth: int = 0):
    """A value that a stranger might write, of any JSON type."""
    plain = (
        "",
        "None",
        "\ud800x",
        "\x1b[2J\u202e",
        "x" * 9000,
        0,
        -1,
        10**80,
        1e308,
        True,
        None,
        "NaN",
        "1_000",
        "(1024, 1024)",
        "[",
        "\u0663",
    )
    if depth > 3 or chance.random() < 0.4:
        return chance.choice(plain)
    names = (
        "10_x",
        "",
        "buckets",
        "resolution",
        "subsets",
        "img_count",
        "is_reg",
        "image_dir",
        "transformer.r",
        "r",
        "optimizer",
        "\udfff",
        "name",
    )
    if chance.random() < 0.3:
        return [hostile_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {
        chance.choice(names): hostile_value(chance, depth + 1) for _ in range(chance.randrange(5))
    }


def assert_same_words(metadata, noted=()) -> None:
    """What is read for the library alone is what the whole metadata tell."""
    whole = with_words(read_metadata(metadata), [(word, "file") for word in noted])
    assert trigger_words_of(metadata, noted) == tuple(one.word for one in whole.trigger_words)


@pytest.mark.parametrize("noted", [(), ("Beside", "OHWX man")])
def test_trigger_words_alone_are_those_of_the_whole(noted):
    dirs = {"1_regular": {"img_count": 9}, "3_cat": {"img_count": 4, "n_repeats": 3}}
    datasets = [{"subsets": [{"image_dir": "2_dog", "class_tokens": "a dog", "img_count": 7}]}]
    for metadata in (
        {},
        sd_scripts(),
        sd_scripts(ss_reg_dataset_dirs=json.dumps(dirs), ss_datasets=json.dumps(datasets)),
        {"modelspec.usage_hint": "Trigger word: zwx", "trained_words": '["a", "b"]'},
        {"ss_tag_frequency": json.dumps({"1_p3rs0n": {"p3rs0n": 1}})},
        {"ss_tag_frequency": json.dumps({"a": 5, "b": 1}), "trigger_word": "beside"},
    ):
        assert_same_words(metadata, noted)


@pytest.mark.parametrize("seed", range(8))
def test_hostile_values_never_raise(seed):
    chance = random.Random(seed)
    keys = [path[0] for path in metadata_table().rules]
    for _ in range(60):
        chosen = [
            *chance.sample(keys, 12),
            "ss_tag_frequency",
            "ss_datasets",
            "ss_dataset_dirs",
            "\ud800",
        ]
        values = {key: hostile_value(chance) for key in chosen}
        metadata = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
        }
        for content in (metadata, values):
            text = json.dumps(read_metadata(content).as_dict(), allow_nan=False, ensure_ascii=False)
            assert_same_words(content)
            text.encode("utf-8")
            assert "\x1b" not in text and "\u202e" not in text and len(text) < 500_000
    for metadata in (None, [], {}, {1: 2, None: {3}}, {"ss_steps": b"1", ("a",): object()}):
        json.dumps(read_metadata(metadata).as_dict())


LARGE = {
    "one value": lambda n: {"modelspec.description": "\x00" * (500 * n)},
    "deep lists": lambda n: {"ss_datasets": "[" * (250 * n) + "]" * (250 * n)},
    "tags": lambda n: {
        "ss_tag_frequency": json.dumps({"a": {f"tag {number}": 3 for number in range(n)}})
    },
    "folders": lambda n: {
        "ss_dataset_dirs": json.dumps({f"1_a{number}": {} for number in range(n)})
    },
    "folders of tags": lambda n: {
        "ss_tag_frequency": json.dumps({f"1_a{number}": {"b": 5} for number in range(n)})
    },
    "datasets": lambda n: {
        "ss_datasets": json.dumps(
            [{"resolution": number, "subsets": [{}]} for number in range(n // 2)]
        )
    },
    "components": lambda n: {
        "lora_adapter_metadata": json.dumps({f"a{number}.r": 1 for number in range(n)})
    },
    "numbers": lambda n: {
        "ss_text_encoder_lr": "[" + "1," * (200 * n) + "]",
        "ss_steps": "1" * (200 * n),
    },
    "keys": lambda n: {f"key {number}": "v" * 40 for number in range(5 * n)},
}
SIZES = (25_000, 100_000)


@pytest.mark.parametrize("name", LARGE)
def test_large_metadata_costs_no_more_than_its_length_and_tells_little(name):
    costs = []
    for size in SIZES:
        metadata = LARGE[name](size)
        taken = []
        for _ in range(3):
            start = time.process_time()
            found = read_metadata(metadata)
            taken.append(time.process_time() - start)
        costs.append(min(taken))
        assert len(json.dumps(found.as_dict())) < 1_000_000
    assert costs[1] < 10 * max(costs[0], 0.05), "four times as much"


def test_the_table_is_sound():
    table = metadata_table()
    assert all(path[:1] in table.rules for path in table.rules), (
        "what is inside a key needs a line for the key"
    )
    for paths in table.answers.values():
        assert all(
            tuple(path.split(">")) in table.rules or path == "ss_datasets>resolution"
            for path in paths
        )
    for version in table.trainers:
        assert tuple(version.path.split(">")) in table.rules
    METADATA_TABLE.read_text("utf-8").encode("ascii")


def test_the_table_and_the_catalogs_have_the_same_words():
    table = metadata_table()
    texts = [*(rule.label for rule in table.rules.values()), *table.sections]
    assert [text for text in texts if not isinstance(text, Message)] == []
    asked = {text.source.id for text in texts} | {"metadata.label_duration"}
    assert all(catalog("en")[text.source.id] == text for text in texts)
    for version in table.trainers:
        id = label_id("metadata.trainer", version.template)
        if catalog("en").get(id) == version.template:
            asked.add(id)
        else:
            words = re.sub(r"\{.*?\}", "", version.template).strip()
            assert words in ("", "AI-Toolkit"), "a name alone needs no translation"
    kinds = ("field_", "label_", "section_", "trainer_")
    assert asked == {
        id for id in catalog("en") if id.startswith(tuple(f"metadata.{kind}" for kind in kinds))
    }


def test_a_label_without_a_catalog_is_the_tables_own():
    rule = read_table("[Own section]\nkey text Own label").rules[("key",)]
    assert (rule.section, rule.label) == ("Own section", "Own label")


def test_all_but_what_is_from_the_file_is_said_in_chinese():
    found = read_metadata(
        sd_scripts(
            ss_steps="many",
            mystery="z" * 5000,
            ss_sd_scripts_commit_hash="25f961bc",
            ss_dataset_dirs=json.dumps({"10_ohwx man": {"n_repeats": 10, "img_count": 1}}),
        )
    )
    chinese = Speaker("zh").text
    training = {chinese(label): chinese(text) for label, text in found.sections["Training"]}
    assert training["\u5b66\u4e60\u7387"] == rows(found, "Training")["Learning rate"]
    dataset = {chinese(label): chinese(text) for label, text in found.sections["Dataset"]}
    assert dataset["\u6587\u4ef6\u5939\uff1a10_ohwx man"].split("\uff0c") == [
        "1 \u5f20\u56fe\u50cf",
        "\u91cd\u590d 10 \u6b21",
    ]
    assert rows(found, "Dataset")["Folder 10_ohwx man"] == "1 image, repeated 10 times"
    assert "\u5171 5,000 \u4e2a\u5b57\u7b26" in chinese(dict(found.unknown)["mystery"])
    (problem,) = found.problems
    assert chinese(problem).endswith("'many' \u4e0d\u662f\u6570\u5b57")
    assert chinese(found.trainer_version).endswith("\u63d0\u4ea4 25f961bc")
    for word in found.trigger_words:
        assert all(chinese(evidence) != evidence for evidence in word.evidence)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[A]\nkey integr Label", "line 2: unknown kind 'integr'"),
        ("key text Label", "line 1: 'key' has no kind, label or section"),
        ("[A]\nkey text", "line 2: 'key' has no kind"),
        ("[A]\nkey text L\nkey text M", "line 3: key is in the table twice"),
    ],
)
def test_a_wrong_table_is_refused(text, fault):
    with pytest.raises(MetadataTableError, match=fault):
        read_table(text)


def test_every_key_of_the_table_is_read():
    """With a value of its kind every top-level key becomes a row, and none is a problem."""
    values = {
        "boolean": "True",
        "resolution": "512,512",
        "list": '["a"]',
        "each": '{"a": 1}',
        "some": '{"a": 1}',
        "adapter": '{"x.a": 1}',
    }
    values |= {
        "tags": '{"a": {"b": 3}}',
        "folders": '{"1_a": {}}',
        "regular_folders": '{"1_a": {}}',
        "datasets": '[{"resolution": 5}]',
    }
    values |= {
        "buckets": '{"buckets": {"0": {"resolution": [8, 8], "count": 1}}}',
        "time": "1690000000.5",
    }
    metadata = {
        path[0]: values.get(rule.kind, "7")
        for path, rule in metadata_table().rules.items()
        if len(path) == 1
    }
    found = read_metadata(metadata)
    assert found.problems == () and found.unknown == ()
    assert sum(map(len, found.sections.values())) >= len(metadata)


def test_it_needs_no_torch():
    entry = ROOT / "__init__.py"
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pack", {str(entry)!r}, submodule_search_locations=[{str(ROOT)!r}])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
import pack.report.metadata, pack.files.hashes
assert not {{"torch", "numpy", "safetensors", "comfy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
