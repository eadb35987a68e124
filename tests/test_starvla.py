"""StarVLA checkpoints: against StarVLA's own numbers where the fixtures are there, and made here where they are not."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from starvla_runs import CONFIG, PROMPT, STATISTICS, starvla_names, starvla_policy, write_run
from tiny import BODY, random_batch, tiny_policy, vlm_folder

from vla_agents.agent import load_agent
from vla_agents.cli import main
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import CheckpointError, ConfigError, UnknownNameError
from vla_agents.normalize import Normalizer, load_normalizers, save_normalizers
from vla_agents.policies.checkpoint import load_policy, save_policy
from vla_agents.policies.pixels import ImageSettings
from vla_agents.policies.qwen_vl import QwenVLBackbone
from vla_agents.policies.starvla.check import Check, CheckConfig
from vla_agents.policies.starvla.configs import _require_same
from vla_agents.policies.starvla.load import load_starvla
from vla_agents.policies.starvla.run import guess_framework, normal_name, read_run
from vla_agents.policies.starvla.units import action_normalizer
from vla_agents.transforms import TurnImages

FRAMEWORKS = ("QwenOFT", "QwenGR00T", "QwenPI", "QwenFast")
GIVEN: dict[str, Any] = {"unnormalization": "none", "final_norm": False, "state": True, "device": "cpu"}


# ---- against StarVLA itself -----------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_quantity_is_within_its_bound(framework: str) -> None:
    check = Check(CheckConfig(fixture=str(golden.fixture(framework)), vlm=str(golden.vlm())))
    rows = list(check.rows())
    assert [
        f"{row.name}: {row.error:.3g} > {row.bound:g} ({row.note} {row.place})"
        for row in rows
        if not row.passed
    ] == []
    names = {row.name for row in rows}
    assert {"single.input_ids", "single.pixel_values", "batch.normalized_actions", "train.loss"} <= names
    assert {"train.grad_norms", "batch.unnorm_head", "batch.unnorm_dec2025"} <= names
    assert ("train.labels" in names) == (framework == "QwenFast")


def test_the_other_semantics_of_pi() -> None:
    """The same weights as Dec-2025 reads them; the stored numbers were made with that attention layout."""
    folder = golden.fixture("QwenPI")
    file = golden.golden("QwenPI", "qwen3", "outputs_legacy_allcross.npz")
    given = GIVEN | {"cameras": golden.CAMERAS, "vlm": str(golden.vlm())}
    policy: Any = load_starvla(folder / "run", pi_semantics="cross_only", **given)
    with np.load(file) as stored:
        wanted = {name: stored[name] for name in stored.files}
    for how, count in (("single", 1), ("batch", 2)):
        noise = torch.from_numpy(golden.outputs("QwenPI")[f"{how}.noise"])
        with torch.no_grad():
            own = policy.predict_action(golden.examples("QwenPI", count=count), noise=noise)
        np.testing.assert_allclose(own.numpy(), wanted[f"{how}.normalized_actions"], atol=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_agent_acts_straight_from_the_run_folder(framework: str) -> None:
    """`load_agent` with what the files do not say; the first action of StarVLA's chunk."""
    folder = golden.fixture(framework)
    with_state = (folder / "inputs" / "ex0_state.npy").is_file()
    given = GIVEN | {"vlm": str(golden.vlm()), "state": with_state}
    if framework == "QwenPI":
        given["pi_semantics"] = "interleaved"
    if framework == "QwenFast":
        given["fast_tokenizer"] = str(golden.golden("fast_tokenizer"))
    agent: Any = load_agent(folder / "run", execute=2, **given)
    stored = golden.outputs(framework)
    if "single.noise" in stored:
        agent.policy.draw_noise = lambda *_: torch.from_numpy(stored["single.noise"])
    batch = golden.examples(framework, count=1)
    names = zip(agent.embodiment.camera_names, golden.CAMERAS, strict=True)
    obs = {
        "images": {camera: batch.images[view][0].numpy() for camera, view in names},
        "instruction": batch.instructions[0],
    }
    if with_state:
        assert batch.state is not None
        obs["state"] = batch.state[0].numpy()
    for step in range(2):
        np.testing.assert_allclose(agent.act(obs), stored["single.normalized_actions"][0, step], atol=1e-4)


def test_check_starvla_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "fixture"
    shutil.copytree(golden.fixture("QwenOFT"), folder, copy_function=shutil.copyfile)
    with np.load(folder / "outputs.npz") as file:
        outputs = {name: file[name] for name in file.files}
    outputs["single.normalized_actions"] = outputs["single.normalized_actions"] + 1e-3
    folder.chmod(0o755)
    (folder / "outputs.npz").unlink()
    np.savez(folder / "outputs.npz", **outputs)
    assert main(["check-starvla", str(folder), "--vlm", str(golden.vlm())]) == 1
    said = capsys.readouterr().out
    assert "FAIL" in said and "single.normalized_actions" in said and "18 of 20" in said
    (folder / "meta.json").unlink()
    assert main(["check-starvla", str(folder), "--vlm", str(golden.vlm())]) == 1
    assert "meta.json is missing" in capsys.readouterr().err


# ---- runs made here -------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", starvla_names(starvla_policy()))


def load(path: Path, **options: Any) -> Any:
    return load_policy(path, **(GIVEN | {"vlm": str(vlm_folder()), "embodiment": BODY} | options))


def test_a_run_gives_the_policy_it_was_written_from(run: Path, tmp_path: Path) -> None:
    batch = random_batch(2)
    wanted = starvla_policy()
    identity = Normalizer(BODY.state, wanted.normalizers["state"].stats, {"*": "none"})
    wanted.normalizers["state"] = identity
    loaded = load(run)
    assert torch.equal(loaded.normalized_actions(batch), wanted.normalized_actions(batch))  # type: ignore[operator]
    assert loaded.horizon == 4 and loaded.config.head_width == 64 and loaded.default_execute == 4
    by_file = load(run / "checkpoints" / "steps_10_model.pt")
    assert torch.equal(by_file.normalized_actions(batch), loaded.normalized_actions(batch))


def test_newest_weights_tied_head_and_old_keys(run: Path) -> None:
    weights = starvla_names(starvla_policy())
    del weights["qwen_vl_interface.model.lm_head.weight"]  # tied: safetensors hold one of the two
    weights["action_model.model.fc2.bias"] += 1
    old = json.loads(json.dumps(CONFIG))
    head = old["framework"]["action_model"]
    del head["action_horizon"]
    old["framework"]["framework_py"] = old["framework"].pop("name")
    old["datasets"]["vla_data"]["image_size"] = old["datasets"]["vla_data"].pop("obs_image_size")
    write_run(run, weights, old, "steps_200_model.safetensors")
    assert read_run(run).weights.name == "steps_200_model.safetensors"
    loaded = load(run)
    assert loaded.horizon == 4 and read_run(run).image_size == (32, 32)
    assert torch.equal(loaded.head.fc2.bias, weights["action_model.model.fc2.bias"])
    assert loaded.backbone.vlm.lm_head.weight is loaded.backbone.vlm.get_input_embeddings().weight


def test_qwen2_5_is_read_after_its_final_norm_without_asking(tmp_path: Path) -> None:
    wanted = tiny_policy("qwen2_5_vl", queries="prompt", state="none", prompt=PROMPT, execute=4)
    loaded = load(
        write_run(tmp_path / "run", starvla_names(wanted)),
        vlm=str(vlm_folder("qwen2_5_vl")),
        final_norm=None,
        state=None,
    )
    batch = random_batch(2)
    assert loaded.config.final_norm and loaded.config.state == "none"
    assert loaded.backbone.image_settings.resize == "pillow"
    assert torch.equal(loaded.normalized_actions(batch), wanted.normalized_actions(batch))


def test_what_the_files_do_not_say_is_asked_for(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(run)
    for name in ("vlm", "unnormalization", "ranges", "final_norm", "cameras"):
        assert f"- {name}:" in str(caught.value)
    assert "/nowhere/Qwen3-VL-Tiny" in str(caught.value) and "pi_semantics" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="Did you mean 'unnorm_key'"):
        load(run, unnorm_keys="arm")
    with pytest.raises(UnknownNameError, match="arm"):
        load(run, unnorm_key="leg")
    (run / "dataset_statistics.json").write_text(
        json.dumps({"left": STATISTICS["arm"], "right": STATISTICS["arm"]})
    )
    with pytest.raises(ConfigError, match="which statistics: left, right"):
        load(run, unnormalization="head", ranges="min_max")
    assert load(run, unnormalization="head", ranges="min_max", unnorm_key="left")


def test_options_for_another_checkpoint_are_refused(tmp_path: Path) -> None:
    ours = save_policy(tiny_policy(), tmp_path / "ours")
    with pytest.raises(ConfigError, match="is for StarVLA checkpoints"):
        load_policy(ours, final_norm=False)
    with pytest.raises(ConfigError, match="vlm, policy_embodiment is for StarVLA checkpoints"):
        load_agent(ours, vlm="somewhere", policy_embodiment=BODY)


def test_load_agent_takes_what_load_policy_takes(run: Path) -> None:
    given = GIVEN | {"vlm": str(vlm_folder())}
    agent: Any = load_agent(run, policy_embodiment=BODY, execute=3, **given)
    assert agent.embodiment == BODY and agent.chunker.execute == 3 and not agent.policy.config.final_norm
    by_cameras: Any = load_agent(run, cameras=("front", "wrist"), **given)
    assert by_cameras.embodiment.camera_names == ("front", "wrist")
    with pytest.raises(ConfigError, match="Did you mean 'unnormalization'"):
        load_agent(run, unnormalisation="none")
    with pytest.raises(ConfigError, match="- unnormalization:"):
        load_agent(run, vlm=given["vlm"], cameras=("front", "wrist"))


def test_converted_is_the_same_to_the_bit(run: Path, tmp_path: Path) -> None:
    out, body = tmp_path / "out", tmp_path / "body.json"
    BODY.save(body)
    words = ["convert", "starvla", str(run), str(out), "--vlm", str(vlm_folder()), "--embodiment", str(body)]
    words += [
        "--unnormalization",
        "dec2025",
        "--ranges",
        "min_max",
        "--final-norm",
        "False",
        "--state",
        "True",
    ]
    assert main(words) == 0
    batch, converted = random_batch(2), load_policy(out, device="cpu")
    loaded = load(run, unnormalization="dec2025", ranges="min_max")
    assert torch.equal(converted.predict_action(batch), loaded.predict_action(batch))
    assert converted.backbone.image_settings.resize == "torch"  # type: ignore[union-attr]
    assert main(words) == 1  # nothing is overwritten


def test_where_two_keys_contradict_the_newer_one_counts_and_it_is_said(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["framework"]["action_model"]["future_action_window_size"] = 15
    assert load(write_run(run, starvla_names(starvla_policy()), config)).horizon == 4
    assert "contradicts future_action_window_size 15" in caplog.text


def test_the_words_of_oft_with_and_without_the_state() -> None:
    """As StarVLA writes them: both marks come with the state, and go with it."""
    ask = f" Please predict the next 4 robot actions: <action>{'🔍' * 4}<action>."
    batch = random_batch(1)
    batch.instructions, batch.state = ["lift it"], torch.zeros(1, 3)
    policy: Any = starvla_policy(prompt="Do {instruction}.")
    policy.normalizers["state"] = Normalizer(BODY.state, policy.normalizers["state"].stats, {"*": "none"})
    assert policy.prompts(batch) == [f"Do lift it [STATE] 128 128 128 [ACTION]{ask}."]
    assert starvla_policy(prompt="Do {instruction}.", state="none").prompts(batch) == [f"Do lift it{ask}."]  # type: ignore[operator]


# ---- bad input ------------------------------------------------------------------------------------------------
def test_damaged_files_are_named(run: Path) -> None:
    file = run / "checkpoints" / "steps_10_model.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"steps_10_model\.pt: damaged or incomplete"):
        load(run)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"steps_10_model\.pt"):
        load(run)
    file.write_bytes(whole)
    (run / "dataset_statistics.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"dataset_statistics\.json: not JSON"):
        load(run)
    (run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        load(file)


class _Code:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_with_code_is_refused_and_not_run(run: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "it_ran", run / "checkpoints" / "steps_10_model.pt"
    torch.save({"weights": _Code(mark)}, file)
    with pytest.raises(CheckpointError, match=r"refused \(it names getattr\)"):
        load(run)
    file.write_bytes(pickle.dumps({"weights": _Code(mark)}))
    with pytest.raises(CheckpointError, match="refused"):
        load(run)
    assert not mark.exists()
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="not a state dict"):
        load(run)


def test_keys_that_do_not_fit_are_listed_by_module(run: Path) -> None:
    weights = starvla_names(starvla_policy())
    del weights["action_model.model.layer_norm1.weight"]
    weights["qwen_vl_interface.model.model.visual.extra"] = torch.zeros(1)
    weights["action_model.model.fc2.bias"] = torch.zeros(5)
    write_run(run, weights)
    with pytest.raises(CheckpointError) as caught:
        load(run)
    said = str(caught.value)
    assert "look like QwenOFT" in said
    assert "missing     head.layer_norm1 (1): weight" in said
    assert "unexpected  qwen_vl_interface.model.model.visual" in said
    assert "mis-shaped  action_model.model" in said and "(5,), expected (4,)" in said


def test_another_framework_than_the_weights(run: Path) -> None:
    with pytest.raises(CheckpointError, match="should be a QwenGR00T, but the weights look like QwenOFT"):
        load(run, framework="QwenGR00T")
    with pytest.raises(ConfigError, match="known: qwen_fast"):
        load(run, framework="QwenDual")
    assert normal_name("Qwen-GR00T") == normal_name("qwen_gr00t") == "qwen_gr00t"
    assert guess_framework({"anything": torch.zeros(1)}) == ""


def test_another_vlm_than_the_weights(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a qwen2_5_vl, the checkpoint was trained from a Qwen3-VL"):
        load(run, vlm=str(vlm_folder("qwen2_5_vl")))
    with pytest.raises(CheckpointError, match="no model could be read"):
        load(run, vlm="/nowhere/at/all")
    weights = starvla_names(starvla_policy())
    name = "qwen_vl_interface.model.model.language_model.embed_tokens.weight"
    weights[name] = torch.cat([weights[name], weights[name][:7]])
    weights["qwen_vl_interface.model.lm_head.weight"] = weights[name].clone()
    write_run(run, weights)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        load(run)


def test_an_action_token_of_several_pieces_and_other_contradictions(run: Path) -> None:
    def changed(**head: Any) -> Path:
        config = json.loads(json.dumps(CONFIG))
        config["framework"]["action_model"] |= head
        return write_run(run, starvla_names(starvla_policy()), config)

    with pytest.raises(ConfigError, match="it must be one"):
        load(changed(action_token="two tokens"))
    with pytest.raises(CheckpointError, match="positional_embeddings is 'sinusoidal'"):
        _require_same(read_run(changed(diffusion_model_cfg={"positional_embeddings": "sinusoidal"})))
    with pytest.raises(CheckpointError, match="action_dim 7"):
        load(changed(action_dim=7))
    with pytest.raises(CheckpointError, match="past_action_window_size"):
        load(changed(past_action_window_size=2))
    with pytest.raises(ConfigError, match="3 action values, the checkpoint 4"):
        load(changed(), embodiment=Embodiment("short", (Part("x", 3, "other"),), BODY.state, BODY.cameras))


# ---- un-normalisation -----------------------------------------------------------------------------------------
PARTS = (Part("move", 6, "other"), Part("gripper", 1, "gripper_open_01", 0, 1))
ENTRY = {
    "min": [-2.0, -1, 0, 0, 0.5, -1, 0], "max": [2.0, 3, 1, 1, 0.5, 1, 1],
    "q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False],
}  # fmt: skip
ROW = np.array([[1.5, -0.5, 0.0, 1.0, 0.7, -3.0, 0.4], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]], np.float32)


def test_both_conventions(tmp_path: Path) -> None:
    head = action_normalizer(PARTS, ENTRY, "head", "min_max")
    # (x + 1) / 2 * (max - min) + min, not clipped; a constant stays one; the gripper as it is
    np.testing.assert_allclose(head.unnormalize(ROW)[0], [3.0, 0.0, 0.5, 1.0, 0.5, -3.0, 0.4], atol=1e-6)
    client = action_normalizer(PARTS, ENTRY, "dec2025", "min_max")
    np.testing.assert_allclose(client.unnormalize(ROW)[0], [2.0, 0.0, 0.5, 1.0, 0.5, -1.0, 0.0], atol=1e-6)
    assert client.unnormalize(ROW)[1, 6] == 1.0
    oxe = action_normalizer(PARTS, ENTRY, "head", "q01_q99")
    np.testing.assert_allclose(oxe.unnormalize(ROW)[0], [1.5, -0.5, 0, 1, 0.7, -3, 0], atol=1e-6)
    plain = action_normalizer(PARTS, ENTRY, "none", "min_max")
    np.testing.assert_array_equal(plain.unnormalize(ROW), ROW)
    body = Embodiment("arm", PARTS)
    for normalizer in (head, client, oxe, plain):
        torch.testing.assert_close(
            normalizer.unnormalize(torch.from_numpy(ROW)), torch.from_numpy(normalizer.unnormalize(ROW))
        )
        save_normalizers(tmp_path / "stats.json", {"action": normalizer})
        again = load_normalizers(tmp_path / "stats.json", body)["action"]
        np.testing.assert_array_equal(again.unnormalize(ROW), normalizer.unnormalize(ROW))
    bad = ROW.copy()
    bad[0, 6] = np.nan
    assert np.isnan(client.unnormalize(bad)[0, 6])  # a step must not hide it
    assert torch.isnan(client.unnormalize(torch.from_numpy(bad))[0, 6])
    assert client.normalize(np.full((1, 7), 0.5, np.float32))[0, 4] == 0  # the constant


def test_masks_and_grippers_that_split_a_part() -> None:
    split = (Part("all", 7, "other"),)
    with pytest.raises(ConfigError, match="inside 'all'"):
        action_normalizer(split, ENTRY, "head", "min_max")
    with pytest.raises(ConfigError, match="splits the part 'move'"):
        action_normalizer(PARTS, ENTRY | {"mask": [True] * 5 + [False] * 2}, "dec2025", "min_max")
    with pytest.raises(CheckpointError, match="min has 3 values"):
        action_normalizer(PARTS, ENTRY | {"min": [0.0] * 3}, "dec2025", "min_max")


# ---- the backbone ---------------------------------------------------------------------------------------------
@torch.no_grad()
def test_the_prompt_may_be_cut_after_the_last_query() -> None:
    whole, cut = starvla_policy(cut=False), starvla_policy(cut=True)
    batch = random_batch(3)
    torch.testing.assert_close(cut.predict_action(batch), whole.predict_action(batch), atol=2e-6, rtol=0)
    inputs = cut.backbone.inputs(list(batch.images.values()), cut.prompts(batch), cut_after="🔍")  # type: ignore[operator, union-attr]
    assert (inputs["input_ids"][:, -4:] == cut.backbone.token_id("🔍")).all()


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_layers_are_those_of_transformers(family: str) -> None:
    backbone = QwenVLBackbone.from_pretrained(vlm_folder(family)).eval()
    batch = random_batch(2)
    views = list(batch.images.values())
    texts = ["lift it", "put the green block on the blue pad, please"]  # padded
    encoding = backbone.encode(views, texts, layers=[0, 1, 2])
    inputs = backbone.inputs(views, texts)
    mask = inputs.mask
    theirs = backbone.vlm.model(**inputs, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(encoding.hidden[mask], theirs.last_hidden_state[mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoding.layers[0][mask], theirs.hidden_states[0][mask], atol=1e-5, rtol=1e-4)
    raw = backbone.encode(views, texts, final_norm=False)
    normed = backbone.vlm.model.language_model.norm(raw.hidden)
    torch.testing.assert_close(normed[mask], encoding.hidden[mask], atol=1e-5, rtol=1e-4)
    early = backbone.encode(views, texts, layers=[1])
    torch.testing.assert_close(early.hidden[mask], encoding.layers[1][mask])
    for wrong in ([], [2, 1], [1, 1], [3]):
        with pytest.raises(ConfigError, match="ascending"):
            backbone.encode(views, texts, layers=wrong)


def test_the_resize_is_kept_with_the_model(tmp_path: Path) -> None:
    settings = ImageSettings(16, 2, 2, (0.5,) * 3, (0.5,) * 3, 65536, 16777216, "torch")
    settings.save(tmp_path)
    assert ImageSettings.load(tmp_path) == settings
    view = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8))
    patches, grid = settings.patches(view)
    assert grid == (1, 16, 16) and patches.shape == (2 * 256, 1536)


def test_mirrored_pictures() -> None:
    camera = Camera("front", 2, 2)
    turn = TurnImages("mirrored", "upright")
    assert turn.embodiment(Embodiment("arm", PARTS, (), (camera,))).cameras[0].orientation == "mirrored"
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(
        turn.observation({"images": {"front": image}})["images"]["front"], image[:, ::-1]
    )
