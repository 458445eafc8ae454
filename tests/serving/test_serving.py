import asyncio
import base64
import json
import re
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import Message

from ray_reid import images, schema, storage
from ray_reid.gallery import index, live
from ray_reid.gallery.gallery import Hit
from ray_reid.gallery.search import Answer, Refinement
from ray_reid.gallery.searcher import UnknownCameraError
from ray_reid.generation.generators import descriptions
from ray_reid.generation.generators.descriptions import Description
from ray_reid.miniature import street_observations
from ray_reid.models import package
from ray_reid.recipe import recipes
from ray_reid.recipe.serve import Dressers, Serve
from ray_reid.runtime.job import Work
from ray_reid.runtime.results import RunState
from ray_reid.serving import app
from ray_reid.serving.api import UnavailableError, create_api

JPEG = images.encode(np.full((16, 8, 3), 200, np.uint8))
PNG_START = b"\x89PNG"
LIMIT_MB = 0.0625


def hit(rank: int) -> Hit:
    return Hit(rank, 1 / rank, f"id{rank}", "s:1", "c1", None, None, "s", "CC0", "gallery")


class FakeGallery:
    dimension = 16

    def __init__(self) -> None:
        self.pictures = {"jpeg": JPEG}

    def __len__(self) -> int:
        return 30

    def image(self, observation_id: str) -> bytes:
        if observation_id not in self.pictures:
            raise ValueError(f"the gallery has no observation {observation_id!r}")
        return self.pictures[observation_id]


@dataclass
class FakeSearcher:
    gallery: FakeGallery
    name: str = "test/0"
    received: bytes = b""
    camera: str | None = None

    def search(self, encoded: bytes, k: int, *, camera: str | None) -> list[Hit]:
        images.decode(encoded)
        if camera == "city:c9":
            raise UnknownCameraError(f"camera {camera!r} is on no image; they know city:c1")
        self.received, self.camera = encoded, camera
        return [hit(rank) for rank in range(1, 1 + min(k, len(self.gallery)))]


@pytest.fixture
def searcher() -> FakeSearcher:
    return FakeSearcher(FakeGallery())


@pytest.fixture
def client(searcher: FakeSearcher) -> Iterator[TestClient]:
    with TestClient(create_api(searcher, LIMIT_MB)) as client:
        yield client


def in_base64(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


def test_health_says_what_is_served(client: TestClient) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    expected = {"status": "ok", "gallery_size": 30, "model": "test/0", "dimension": 16}
    assert answer.json() == expected


def test_a_multipart_upload_gives_hits_in_order(client: TestClient, searcher: FakeSearcher) -> None:
    answer = client.post("/v1/search", files={"image": ("a.jpg", JPEG)}, data={"k": "3"})
    assert answer.status_code == 200
    result = answer.json()
    assert [found["rank"] for found in result["hits"]] == [1, 2, 3]
    assert result["hits"][0] == {
        "rank": 1,
        "observation_id": "id1",
        "identity": "s:1",
        "camera": "c1",
        "view": None,
        "time": None,
        "source": "s",
        "licence": "CC0",
        "split": "gallery",
        "similarity": 1.0,
        "decision": None,
        "path": None,
    }
    assert (result["model"], result["gallery_size"]) == ("test/0", 30)
    assert result["took_ms"] >= 0
    assert searcher.received == JPEG


@pytest.mark.parametrize(
    "text",
    [
        in_base64(JPEG),
        "data:image/jpeg;base64," + in_base64(JPEG),
        base64.encodebytes(JPEG).decode(),
    ],
    ids=["base64", "data URI", "base64 in lines"],
)
def test_json_gives_the_same_bytes_as_a_file(
    client: TestClient, searcher: FakeSearcher, text: str
) -> None:
    answer = client.post("/v1/search", json={"image": text, "k": 2})
    assert answer.status_code == 200
    assert len(answer.json()["hits"]) == 2
    assert searcher.received == JPEG


def test_the_camera_of_the_query_is_passed_on(client: TestClient, searcher: FakeSearcher) -> None:
    client.post("/v1/search", json={"image": in_base64(JPEG), "camera": "city:c1"})
    assert searcher.camera == "city:c1"
    client.post("/v1/search", files={"image": ("a.jpg", JPEG)}, data={"camera": "city:c2"})
    assert searcher.camera == "city:c2"
    unknown = client.post("/v1/search", json={"image": in_base64(JPEG), "camera": "city:c9"})
    assert unknown.status_code == 422
    assert unknown.json() == {"error": "camera 'city:c9' is on no image; they know city:c1"}
    for camera in (7, "c1", ":c1", "city:"):
        answer = client.post("/v1/search", json={"image": in_base64(JPEG), "camera": camera})
        assert answer.status_code == 422
        assert "it must be named source:camera" in answer.json()["error"]


def test_k_is_ten_unless_told(client: TestClient) -> None:
    by_json = client.post("/v1/search", json={"image": in_base64(JPEG)})
    by_form = client.post("/v1/search", files={"image": ("a.jpg", JPEG)})
    assert len(by_json.json()["hits"]) == len(by_form.json()["hits"]) == 10


@pytest.mark.parametrize("k", [0, -1, 1001, 2.5, True, None, "many", "9" * 5000, []])
def test_an_impossible_k_is_refused_in_json(client: TestClient, k: object) -> None:
    answer = client.post("/v1/search", json={"image": in_base64(JPEG), "k": k})
    assert answer.status_code == 422
    assert re.fullmatch(r"k is .{1,40}; it must be .* from 1 to 1000", answer.json()["error"])


@pytest.mark.parametrize("k", ["0", "-1", "1001", "2.5", "", "many", "\u00b2"])
def test_an_impossible_k_is_refused_in_a_form(client: TestClient, k: str) -> None:
    answer = client.post("/v1/search", files={"image": ("a.jpg", JPEG)}, data={"k": k})
    assert answer.status_code == 422
    assert f"k is {k!r}; it must be a whole number" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"[" * 20_000, 400, "the body is not JSON"),
        (b"[]", 400, "the body is not a JSON object"),
        (b"{}", 400, "field 'image' is missing or empty"),
        (b'{"image": ""}', 400, "field 'image' is missing or empty"),
        (b'{"image": 7}', 400, "not base64 or a data URI: it is of type int"),
        (b'{"image": "%%%"}', 400, "not base64 or a data URI"),
        (b'{"image": "\\ud800"}', 400, "not base64 or a data URI"),
        (b'{"image": "data:image/jpeg,abc"}', 400, "the data URI has no ';base64,'"),
        (b'{"image": "d29yZHM="}', 400, "image: not a readable image (5 bytes)"),
        (
            b'{"image": "d29yZHM=", "K": 3}',
            422,
            "unknown field 'K'; choose from ['image', 'k', 'camera', 'refine']",
        ),
    ],
)
def test_wrong_json_gets_one_sentence(
    client: TestClient, body: bytes, status: int, message: str
) -> None:
    kind = {"content-type": "application/json"}
    answer = client.post("/v1/search", content=body, headers=kind)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_wrong_forms_get_one_sentence(client: TestClient) -> None:
    def refusal(status: int, **request: object) -> str:
        answer = client.post("/v1/search", **request)
        assert answer.status_code == status
        return str(answer.json()["error"])

    picture = ("a.jpg", JPEG)
    assert "not a readable image" in refusal(400, files={"image": ("a.jpg", JPEG[:200])})
    assert "missing or empty" in refusal(400, files={"image": ("a.jpg", b"")})
    assert "unknown field 'photo'" in refusal(422, files={"photo": picture})
    assert "is text" in refusal(400, files={"k": (None, "3"), "image": (None, "words")})
    assert "Too many files" in refusal(400, files=[("image", picture), ("image", picture)])
    kind = {"content-type": "multipart/form-data"}
    assert "boundary" in refusal(400, content=b"words", headers=kind)
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert refusal(400, content=b"words", headers=kind).startswith("the form is not readable")
    assert "missing" in refusal(400, content=b"", headers=kind)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-www-form-urlencoded", None])
def test_other_content_types_are_refused(client: TestClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = client.post("/v1/search", content=JPEG, headers=headers)
    assert answer.status_code == 415
    assert "is not one of ['application/json', 'multipart/form-data']" in answer.json()["error"]


def test_an_announced_oversized_body_is_not_read(searcher: FakeSearcher) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100000000")]
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": headers}
    request = {**scope, "query_string": b"", "root_path": ""}
    asyncio.run(create_api(searcher, LIMIT_MB)(request, receive, send))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"]) == {
        "error": "the request is larger than the limit of 0.0625 MiB"
    }


def test_an_unannounced_oversized_body_is_refused(client: TestClient) -> None:
    chunks = (b"x" * 10_000 for _ in range(7))
    kind = {"content-type": "application/json"}
    answer = client.post("/v1/search", content=chunks, headers=kind)
    assert answer.status_code == 413


def test_an_image_of_a_hit_is_served_as_jpeg(client: TestClient, searcher: FakeSearcher) -> None:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    assert buffer.getvalue().startswith(PNG_START)
    searcher.gallery.pictures = {"jpeg": JPEG, "png": buffer.getvalue()}
    as_stored = client.get("/v1/observations/jpeg/image")
    assert (as_stored.content, as_stored.headers["content-type"]) == (JPEG, "image/jpeg")
    converted = client.get("/v1/observations/png/image").content
    assert converted.startswith(b"\xff\xd8")
    assert images.decode(converted).shape == (8, 8, 3)


def test_unknown_things_are_refused_as_json(client: TestClient) -> None:
    missing = client.get("/v1/observations/nobody/image")
    assert missing.status_code == 404
    assert missing.json() == {"error": "the gallery has no observation 'nobody'"}
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert client.get("/v1/search").status_code == 405


def test_the_api_describes_its_requests_and_answers(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]
    assert set(described["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert described["responses"]["200"]["content"]["application/json"]["schema"]


def test_a_taken_port_is_refused_with_the_choice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = f"port {port} on 127.0.0.1 is in use: choose another with --port"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            app.check_port("127.0.0.1", port)
    app.check_port("127.0.0.1", port)


def test_an_impossible_address_is_refused() -> None:
    with pytest.raises(ValueError, match="port 70000 is not from 1 to 65535"):
        app.check_port("127.0.0.1", 70000)
    with pytest.raises(ValueError, match=re.escape("cannot listen on 192.0.2.1 port 8000: ")):
        app.check_port("192.0.2.1", 8000)


def test_a_run_without_results_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory: it has no run\.json"):
        app.serve_run(tmp_path, recipes.validate({"name": "test"}))


@dataclass
class FakeRefiner:
    searcher: FakeSearcher
    error: Exception | None = None

    def search(self, encoded: bytes, k: int, *, camera: str | None) -> Answer:
        if self.error is not None:
            raise self.error
        hits = self.searcher.search(encoded, k, camera=camera)[::-1]
        return Answer(hits, Refinement(True, "refined by clothes", 0.25, 0.5, 6))


@pytest.fixture
def refiner(searcher: FakeSearcher) -> FakeRefiner:
    return FakeRefiner(searcher)


@pytest.fixture
def refining(searcher: FakeSearcher, refiner: FakeRefiner) -> Iterator[TestClient]:
    with TestClient(create_api(searcher, LIMIT_MB, refiner)) as client:
        yield client


def test_a_search_is_refined_if_it_asks_for_that(refining: TestClient) -> None:
    form = {"k": "3", "refine": "clothes", "camera": "city:c1"}
    answer = refining.post("/v1/search", files={"image": ("a.jpg", JPEG)}, data=form)
    assert answer.status_code == 200
    assert [found["observation_id"] for found in answer.json()["hits"]] == ["id3", "id2", "id1"]
    assert answer.json()["refinement"] == {
        "refined": True,
        "reason": "refined by clothes",
        "margin": 0.25,
        "threshold": 0.5,
        "num_variants": 6,
    }
    by_json = refining.post("/v1/search", json={"image": in_base64(JPEG), "refine": "clothes"})
    assert by_json.json()["refinement"]["refined"]
    plain = refining.post("/v1/search", files={"image": ("a.jpg", JPEG)}, data={"k": "3"})
    assert plain.json()["refinement"] is None
    assert [found["observation_id"] for found in plain.json()["hits"]] == ["id1", "id2", "id3"]


@pytest.mark.parametrize("kind", ["shoes", "", 1, ["clothes"]])
def test_an_unknown_refinement_is_refused_with_the_choices(
    refining: TestClient, kind: object
) -> None:
    answer = refining.post("/v1/search", json={"image": in_base64(JPEG), "refine": kind})
    assert answer.status_code == 422
    assert f"refine is {kind!r}; choose from ['clothes']" in answer.json()["error"]


def test_a_run_that_cannot_refine_says_why(searcher: FakeSearcher) -> None:
    with TestClient(create_api(searcher, LIMIT_MB, "its recipe has no section")) as client:
        asked = {"image": in_base64(JPEG), "refine": "clothes"}
        answer = client.post("/v1/search", json=asked)
    assert answer.status_code == 422
    assert answer.json() == {"error": "refine: its recipe has no section"}


def test_a_busy_dresser_and_a_broken_image_get_one_sentence(
    refining: TestClient, refiner: FakeRefiner
) -> None:
    refiner.error = UnavailableError("too many queries are waiting")
    asked = {"image": in_base64(JPEG), "refine": "clothes"}
    answer = refining.post("/v1/search", json=asked)
    assert answer.status_code == 503
    assert answer.json() == {"error": "refine: too many queries are waiting"}
    refiner.error = None
    asked["image"] = in_base64(JPEG[:100])
    answer = refining.post("/v1/search", json=asked)
    assert answer.status_code == 400
    assert "not a readable image" in answer.json()["error"]


def test_searches_that_wait_for_variants_leave_threads_to_the_others(
    searcher: FakeSearcher,
) -> None:
    begun, done = threading.Semaphore(0), threading.Event()

    class Waiting(FakeRefiner):
        def search(self, encoded: bytes, k: int, *, camera: str | None) -> Answer:
            begun.release()
            assert done.wait(60)
            return super().search(encoded, k, camera=camera)

    plain = {"image": in_base64(JPEG)}
    many = 50
    with (
        TestClient(create_api(searcher, LIMIT_MB, Waiting(searcher))) as client,
        ThreadPoolExecutor(many) as threads,
    ):
        refine = {**plain, "refine": "clothes"}
        asked = [threads.submit(client.post, "/v1/search", json=refine) for _ in range(many)]
        try:
            assert all(begun.acquire(timeout=60) for _ in range(many))
            assert client.post("/v1/search", json=plain).status_code == 200
        finally:
            done.set()
    assert all(one.result().status_code == 200 for one in asked)


class SlowDresser(app.DresserReplica):
    """Dresses in an instant, after a while or never, as the image says."""

    def load(self, run: Path) -> Callable[[bytes], list[bytes] | str]:
        return self.make

    def make(self, encoded: bytes) -> list[bytes] | str:
        if encoded == b"nobody":
            return "no_clothes: 0.0% of the image"
        if encoded == b"broken":
            raise ValueError("the GPU is gone\nand so is its memory")
        time.sleep(5 if encoded == b"slow" else 0)
        return [encoded + bytes([number]) for number in range(3)]


def test_variants_are_made_by_a_deployment_of_their_own() -> None:
    deployed = app.dressing(SlowDresser, Dressers(max_queued=3))
    assert (deployed.max_ongoing_requests, deployed.max_queued_requests) == (1, 3)
    handle = serve.run(deployed.bind(Path()), _local_testing_mode=True)
    assert app.ask(handle, 30, b"a") == [b"a\x00", b"a\x01", b"a\x02"]
    assert app.ask(handle, 30, b"nobody") == "no_clothes: 0.0% of the image"
    with pytest.raises(UnavailableError, match=r"took more than 0\.2 s"):
        app.ask(handle, 0.2, b"slow")


def test_a_query_that_is_given_up_is_never_painted_beside_another() -> None:
    seen: list[str] = []
    finish = threading.Event()

    class Watched(app.DresserReplica):
        def load(self, run: Path) -> Callable[[bytes], list[bytes] | str]:
            return self.make

        def make(self, encoded: bytes) -> list[bytes] | str:
            seen.append(f"{encoded.decode()} begins")
            assert finish.wait(60)
            seen.append(f"{encoded.decode()} ends")
            return [encoded]

    async def ask() -> list[bytes] | str:
        dresser = Watched(Path())
        first, second, third = (
            asyncio.create_task(dresser(name)) for name in (b"first", b"second", b"third")
        )
        while not seen:
            await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        await asyncio.sleep(0.1)
        assert seen == ["first begins"]
        finish.set()
        return await third

    assert asyncio.run(ask()) == [b"third"]
    assert seen == ["first begins", "first ends", "third begins", "third ends"]


FAILED = RayTaskError("dress", "Traceback\n...\nValueError: no memory", ValueError("no memory"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BackPressureError(3, 3), "too many queries are waiting to be dressed"),
        (FAILED.as_instanceof_cause(), "the variants of this query could not be made"),
        (RayActorError(), "the variants of this query could not be made"),
        (DeploymentUnavailableError("dresser"), "the variants of this query could not be made"),
    ],
    ids=["full", "failed", "dead", "unavailable"],
)
def test_why_there_are_no_variants_is_one_sentence(error: Exception, sentence: str) -> None:
    class Handle:
        def remote(self, encoded: bytes) -> "Handle":
            return self

        def result(self, timeout_s: float) -> None:
            raise error

    with pytest.raises(UnavailableError, match=sentence) as raised:
        app.ask(Handle(), 30, b"a")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_serve_itself_gives_up_late_variants_and_refuses_a_full_queue(ray_local: None) -> None:
    deployed = app.dressing(SlowDresser, Dressers(num_cpus=0.1, max_queued=1))
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    try:
        handle = serve.run(deployed.bind(Path()), name="dressing", route_prefix=None)
        assert app.ask(handle, 60, b"a") == [b"a\x00", b"a\x01", b"a\x02"]
        with pytest.raises(UnavailableError, match=r"took more than 0\.2 s"):
            app.ask(handle, 0.2, b"slow")
        with pytest.raises(UnavailableError, match="could not be made"):
            app.ask(handle, 60, b"broken")
        with ThreadPoolExecutor(5) as threads:
            asked = [threads.submit(app.ask, handle, 60, b"slow") for _ in range(5)]
        errors = [one.exception() for one in asked]
        refused = [error for error in errors if error is not None]
        assert 0 < len(refused) < 5
        assert all("too many queries" in str(error) for error in refused)
        assert all(isinstance(error, UnavailableError) for error in refused)
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def run(publish_job: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that refines: a network that has learned nothing, and the miniature models."""
    from ray_reid.models.networks import ReidNetwork

    path = tmp_path_factory.mktemp("runs") / "dlcr"
    small = (
        "refine={num_variants: 2, steps: 1}",
        "train.backbone=resnet10t",
        "train.backbone_params={}",
        "train.image_size=[32, 32]",
        "train.clothes={}",
    )
    recipe = recipes.load("dlcr", "miniature", small)
    needs = {"train": [], "embed": ["train"], "index": ["embed"], "evaluate": ["embed"]}
    folders = {
        job: publish_job(path, job, None, {name: f"key-{name}" for name in inputs}, None, recipe)
        for job, inputs in {"ingest": [], **needs, "describe": []}.items()
    }
    model = folders["evaluate"] / "model"
    model.mkdir()
    package.save(model, recipe, ["a", "b"], ReidNetwork(recipe.train, 2).state_dict())
    few = {"num_train": 2, "num_test": 3, "images_per_camera": 2, "cameras_per_identity": 2}
    drawn = street_observations("pedestrian", **few, size=(64, 32), seed=0)
    people = schema.observations(list(drawn))
    storage.write(folders["ingest"] / "observations", people)
    vectors = package.load(path, "cpu").embed(people[schema.IMAGE].to_pylist())
    embedded = people.select([schema.OBSERVATION_ID, schema.SPLIT, schema.ROLE]).append_column(
        schema.EMBEDDING, schema.to_table({schema.EMBEDDING: vectors})[schema.EMBEDDING]
    )
    storage.write(folders["embed"] / "embeddings", embedded)
    jobs = {name: folders[name] for name in ("ingest", "embed")}
    index.index_job(Work(recipe, folders["index"], jobs, {}))
    live.seed(folders["index"], "key-index", path / "gallery", embed=list)
    worn = [Description(f"w{n}", "red t-shirt", "blue trousers", f"boots {n}") for n in range(3)]
    descriptions.write(folders["describe"] / descriptions.FILE, worn, {})
    return path


def changed(run: Path, path: Path, old: str, new: str) -> Path:
    """A copy of a run with other words in its recipe."""
    shutil.copytree(run, path)
    recipe = path / "run.json"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    return path


def test_a_run_without_what_paints_is_served_without(run: Path, tmp_path: Path) -> None:
    assert app._lacking(RunState.read(run), Serve()) is None
    searching = app.application(RunState.read(run), Serve())._bound_deployment
    dressers = Dressers()
    waiting = dressers.max_queued + dressers.replicas
    assert searching.max_ongoing_requests == app.AT_ONCE + waiting
    bare = changed(run, tmp_path / "bare", "miniature:inpainting", "/no/model")
    assert app._lacking(RunState.read(bare), Serve()) == (
        "models.inpainting: model '/no/model' is not there; give a local path or a hub id"
    )
    few = changed(run, tmp_path / "few", '"num_variants": 2', '"num_variants": 9')
    assert "refine.num_variants: 9 outfits" in str(app._lacking(RunState.read(few), Serve()))
    for lacking in (bare, few):
        searching = app.application(RunState.read(lacking), Serve())._bound_deployment
        assert searching.max_ongoing_requests == app.AT_ONCE


@pytest.mark.slow
def test_serve_refines_with_dressers_of_its_own(run: Path, tmp_path: Path, ray_local: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Serve(num_cpus=0.1, dressers=Dressers(num_cpus=0.1))
    (tmp_path / "empty").mkdir()
    broken = changed(run, tmp_path / "broken", "miniature:inpainting", str(tmp_path / "empty"))
    with app._server("127.0.0.1", port, own=False):
        with pytest.raises(ValueError, match=r"serve\.dressers=null, .*cannot be loaded") as raised:
            app._deploy(RunState.read(broken), settings)
        assert "\n" not in str(raised.value)
        app._deploy(RunState.read(run), settings)
        people = storage.read(RunState.read(run).folder("ingest") / "observations", [schema.IMAGE])[
            schema.IMAGE
        ]
        body = {"image": in_base64(people[0].as_py()), "refine": "clothes"}
        url = f"http://127.0.0.1:{port}/v1/search"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            told = json.loads(response.read())["refinement"]
    assert (told["refined"], told["num_variants"]) == (True, 2)
