"""The faults of a game day: how each is injected, and how it is fixed with the runbook.

A fix uses only information that the person on call has: it runs the commands of the section of docs/runbook.md to
which the alert links. `Game.run` replaces Kubernetes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import TopicPartition as KafkaPartition
from redis import Redis as RedisClient

from ingest.local.fleet import SESSION_SECONDS, is_up
from ingest.local.servers.fault_proxy import Errors, Hang, NoFault
from ingest.local.servers.processes import HOST, LocalError, free_port
from ingest.testing.messages import recording
from tasks.kafka.options import kafka_options
from tasks.names import CONTROL_QUEUE, flush_queue
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.wire import SinkName
from tools.gameday.game import READERS, REDIS_BYTES_MAX, WORKERS, Fault, Game
from tools.gameday.load import GARBAGE_PROJECT
from tools.history.check import Exemption

OLD_ID, BANNED_ID = "0ddba110000000000000000000000001", "0ddba110000000000000000000000002"
BANNED_SEGMENT = 60_606
TWELVE_YEARS_SECONDS = 12 * 365 * 86_400
OFFSETS_PAST_END = 100_000
BOMB_BYTES, BOMB_SECONDS_MAX = 150_000_000, 60.0
OPERATOR_OPTIONS = ("--by", "gameday")
WRONG_LOGIN = {
    "REPLAYS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "REPLAYS_KAFKA_SASL_USERNAME": "replays-ingest",
    "REPLAYS_KAFKA_SASL_PASSWORD": "not-the-password",
}

# Readers and workers


def kill_reader(game: Game) -> None:
    game.fleet.kill(game.fleet.children[READERS[0]], keep=False)


def start_reader(game: Game) -> None:
    game.step("the pod is started again")
    game.run(READERS[0])


def kill_readers(game: Game) -> None:
    for name in READERS:
        game.fleet.kill(game.fleet.children[name], keep=False)


def start_readers(game: Game) -> None:
    game.command("check")
    game.step("the readers are started again")
    for name in READERS:
        game.run(name)


def kill_workers(game: Game) -> None:
    for name in WORKERS:
        game.fleet.kill(game.fleet.children[name], keep=False)


def start_workers(game: Game) -> None:
    game.step("the workers are started again")
    for name in WORKERS:
        game.run(name)


def omit_queue(game: Game) -> None:
    """Deploys workers whose queue list lacks the BigQuery queue."""
    flush = (flush_queue(sink) for sink in SinkName if sink is not SinkName.BIGQUERY)
    restart_workers(game, (CONTROL_QUEUE, *flush))


def consume_all_queues(game: Game) -> None:
    game.json("status")
    game.command("check", codes=(1,))
    game.step("the workers are restarted with all queues")
    restart_workers(game, ())


def restart_workers(game: Game, queues: Sequence[str]) -> None:
    for name in WORKERS:
        game.fleet.stop(game.fleet.children[name])
        game.run(name, queues=queues)


def outlive_session(game: Game) -> None:
    """Suspends the reader for longer than its session timeout, so that the reader is no longer a member of the
    group when it resumes.
    """
    child = game.fleet.children[READERS[0]]
    child.pause()
    try:
        game.ending.wait(2 * SESSION_SECONDS)
    finally:
        child.resume()


def do_nothing(game: Game) -> None:
    game.step("nothing, because it happened once")


# Kafka


def kill_kafka(game: Game) -> None:
    game.stack.servers["kafka"].kill()


def start_kafka(game: Game) -> None:
    game.command("check", codes=(1,))
    game.step("Kafka is started again, with its data")
    game.stack.servers["kafka"].restart(kill=True)


def refuse_login(game: Game) -> None:
    """Deploys readers with a protocol that the brokers do not support, so that every login fails."""
    restart_readers(game, wait=False, REPLAYS_KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT", **WRONG_LOGIN)


def correct_login(game: Game) -> None:
    game.step("the Secret is corrected and the readers are restarted")
    restart_readers(game)


def stop_producers(game: Game) -> None:
    game.load.silent = True


def start_producers(game: Game) -> None:
    ends = dict(game.load.ends)
    game.step(
        f"kafka-get-offsets: the log ends at {sum(ends.values())} and does not grow; the producers start again"
    )
    game.load.silent = False


# Redis


def kill_redis(game: Game) -> None:
    game.redis_server.kill()


def start_redis(game: Game) -> None:
    game.step("Redis is started again, without its data")
    game.redis_server.restart(empty=True)


def demote_redis(game: Game) -> None:
    """Simulates a failover after which the address still resolves to the old primary, which serves reads and
    refuses writes.
    """
    game.redis_server.send_command("REPLICAOF", HOST, str(free_port()))


def promote_redis(game: Game) -> None:
    game.command("check", codes=(1,))
    game.step("redis-cli REPLICAOF NO ONE")
    game.redis_server.send_command("REPLICAOF", "NO", "ONE")


def fill_redis(game: Game) -> None:
    """Sets the memory limit of Redis just above the memory in use."""
    with client(game) as redis:
        info: Any = redis.info("memory")
        redis.config_set("maxmemory", int(info["used_memory"] * 1.15))


def enlarge_redis(game: Game) -> None:
    game.json("status")
    game.step(f"redis-cli CONFIG SET maxmemory {REDIS_BYTES_MAX}")
    with client(game) as redis:
        redis.config_set("maxmemory", REDIS_BYTES_MAX)


def disconnect_worker(game: Game) -> None:
    game.proxies["redis"].set(Hang())


def delete_worker(game: Game) -> None:
    game.step(f"the pod {WORKERS[1]} is deleted; its successor runs elsewhere")
    game.proxies["redis"].set(NoFault())
    game.fleet.kill(game.fleet.children[WORKERS[1]], keep=False)
    game.run(WORKERS[1])


def client(game: Game) -> RedisClient[bytes]:
    return RedisClient.from_url(game.redis_server.address)


# Sinks


def hang_clickhouse(game: Game) -> None:
    game.proxies["clickhouse"].set(Hang())


def fix_clickhouse(game: Game) -> None:
    game.command("check", codes=(1,))
    game.step("ClickHouse is fixed")
    game.proxies["clickhouse"].set(NoFault())


def refuse_uploads(game: Game) -> None:
    game.proxies["gcs"].set(Errors(503))


def fix_uploads(game: Game) -> None:
    game.command("check", codes=(1,))
    game.step("Cloud Storage is fixed")
    game.proxies["gcs"].set(NoFault())


def refuse_password(game: Game) -> None:
    """Makes ClickHouse respond as if the password had been changed on the server only."""
    game.proxies["clickhouse"].set(Errors(403))


def correct_password(game: Game) -> None:
    parked = game.json("batches", "ls")
    game.command("batches", "show", next(iter(parked)))
    game.command("check", codes=(1,))
    game.step("the Secret is corrected")
    game.proxies["clickhouse"].set(NoFault())
    game.command("batches", "retry", next(iter(parked)), *OPERATOR_OPTIONS, codes=(0, 1))


def refuse_rows(game: Game) -> None:
    """Sends a twelve-year-old row, which BigQuery refuses, and a row that violates a ClickHouse constraint."""
    execute(game, f"ALTER TABLE replay_segments ADD CONSTRAINT banned CHECK segment_id != {BANNED_SEGMENT}")
    now = int(time.time())
    events = [{"type": 3, "timestamp": now * 1000, "data": {"source": 1}}]
    then = now - TWELVE_YEARS_SECONDS
    old = [{"type": 3, "timestamp": then * 1000, "data": {"source": 1}}]
    game.load.send(recording(old, 0, replay_id=OLD_ID, received=then, replay_event=None), then * 1000)
    game.load.send(recording(events, BANNED_SEGMENT, replay_id=BANNED_ID, received=now, replay_event=None))


def replay_refused(game: Game) -> None:
    for sink in ("bigquery", "clickhouse"):
        game.command("dlq", "show", game.letters(sink)[0]["id"])
    game.step("ClickHouse: ALTER TABLE replay_segments DROP CONSTRAINT banned")
    execute(game, "ALTER TABLE replay_segments DROP CONSTRAINT banned")
    game.command("dlq", "replay", "--sink", "clickhouse", "--yes", *OPERATOR_OPTIONS)


def lose_column(game: Game) -> None:
    """Replaces BigQuery's table with the table of an earlier release, which lacks one column."""
    server = bigquery.client(game.settings)
    try:
        name = f"{game.settings.bigquery_project}.{game.settings.bigquery_dataset}.replay_events"
        table = server.get_table(name)
        server.delete_table(name)
        table.schema = table.schema[:-1]
        server.create_table(table)
    finally:
        server.close()  # type: ignore[no-untyped-call]


def migrate_and_retry(game: Game) -> None:
    parked = game.json("batches", "ls")
    game.command("batches", "show", next(iter(parked)))
    game.command("check", codes=(1,))
    game.command("migrate")
    game.command("batches", "retry", next(iter(parked)), *OPERATOR_OPTIONS, codes=(0, 1))


def find_replayed(game: Game) -> None:
    """Checks that the row that ClickHouse refused is now in its table. The other row stays a dead letter, because
    BigQuery never accepts it.
    """
    server = clickhouse.client(game.settings)
    try:

        def is_stored() -> bool:
            sql = f"SELECT count() FROM replay_segments FINAL WHERE segment_id = {BANNED_SEGMENT}"
            return bool(server.query(sql).result_rows[0][0])

        game.until(is_stored, 60, "the refused row in ClickHouse")
    finally:
        server.close()
    game.record_check("the row that ClickHouse refused is stored")


def repair(game: Game) -> None:
    """Writes the rows that were lost with the old table."""
    game.command("reconcile", "--repair", "--rate", "5000", *OPERATOR_OPTIONS)


# Messages


def send_garbage(game: Game) -> None:
    """Adds one unparsable message per twenty-five segments, all from one project. This share is below the ratio
    that halts a reader.
    """
    game.load.garbage_share = 0.04


def send_garbage_of_one_project(game: Game) -> None:
    """Sends as many unparsable messages, all from one project, as valid messages. No reader halts."""
    game.load.garbage_project = GARBAGE_PROJECT + 100  # GARBAGE_PROJECT itself is disabled
    game.load.garbage_share = 1.0


def shed_project(game: Game) -> None:
    letters = game.json("dlq", "ls")["letters"]
    game.command("dlq", "show", letters[-1]["id"])
    game.command("tenants", "kill", str(game.load.garbage_project), "--yes", *OPERATOR_OPTIONS)


def fix_sdk(game: Game) -> None:
    """Leaves the project disabled, because the final reconciliation would otherwise report its dropped messages as
    missing.
    """
    game.load.garbage_share = 0.0
    game.step("the project's owner fixes its SDK")


def send_mostly_garbage(game: Game) -> None:
    """Sends bad messages from many projects, because a single project would only be shed."""
    game.load.garbage_project = GARBAGE_PROJECT + 1  # GARBAGE_PROJECT itself is disabled
    game.load.garbage_projects = 50
    game.load.garbage_share = 1.0


def roll_back_producer(game: Game) -> None:
    letters = game.json("dlq", "ls", "--limit", "20")["letters"]
    game.command("dlq", "show", letters[-1]["id"])
    game.step("the producer is rolled back")
    game.load.garbage_share = 0.0
    game.step("the readers are restarted with REPLAYS_REJECT_RATIO_MAX=1, for the messages already in the topic")
    restart_readers(game, REPLAYS_REJECT_RATIO_MAX="1", REPLAYS_REJECT_UNATTRIBUTED_RATIO_MAX="1")


def ordinary_ratio(game: Game) -> None:
    game.step("the readers are restarted with the ordinary REPLAYS_REJECT_RATIO_MAX")
    restart_readers(game)


def send_bomb(game: Game) -> None:
    """Sends a record of a few kB that decompresses to more than the client library accepts, so that its partition
    is blocked.
    """
    options = {"compression.type": "zstd", "message.max.bytes": 2 * BOMB_BYTES, **kafka_options(game.settings)}
    producer = Producer(options)

    def keep(error: KafkaError | None, record: KafkaMessage) -> None:
        game.kept["bomb"] = record.offset() if error is None else None

    producer.produce(game.settings.kafka_topic, bytes(BOMB_BYTES), partition=0, on_delivery=keep)
    producer.flush(BOMB_SECONDS_MAX)
    if game.kept.get("bomb") is None:
        raise LocalError("the broker did not accept the record")


def skip_bomb(game: Game) -> None:
    offset = game.kept["bomb"]
    game.step("the readers' logs: _BAD_COMPRESSION in partition 0; the readers are stopped")
    for name in READERS:
        game.fleet.stop(game.fleet.children[name])
    game.step(f"kafka-consumer-groups --reset-offsets --to-offset {offset + 1}; the readers are started")
    commit(game, 0, offset + 1)
    for name in READERS:
        game.run(name)


def restart_readers(game: Game, *, wait: bool = True, **settings: str) -> None:
    for name in READERS:
        child = game.fleet.children[name]
        game.fleet.stop(child)
        game.run(name, **settings)
        if wait:
            game.until(lambda child=child: is_up(child), 60, f"{name} to be up")  # type: ignore[misc]


def commit_past_end(game: Game) -> None:
    """Commits an offset beyond the end of the log, which can happen after an unclean leader election."""
    for name in READERS:
        game.fleet.stop(game.fleet.children[name])
    commit(game, 0, game.load.ends[0] + OFFSETS_PAST_END)
    for name in READERS:
        game.run(name)


def commit(game: Game, partition: int, offset: int) -> None:
    """Sets the group's offset like `kafka-consumer-groups --reset-offsets`. The group must have no members."""
    consumer = Consumer({**kafka_options(game.settings), "group.id": game.settings.kafka_group})
    try:
        place = KafkaPartition(game.settings.kafka_topic, partition, offset)
        game.kept["offset_set_at"] = time.time()
        game.history.exemptions.append(Exemption(game.kept["offset_set_at"], "an operator sets the offset"))
        consumer.commit(offsets=[place], asynchronous=False)
    finally:
        consumer.close()


def compare_offsets(game: Game) -> None:
    game.until(lambda: game.fleet.committed()[0] < OFFSETS_PAST_END, 60, "partition 0 to start over")
    reason = "the offset is beyond the log until the readers start over"
    game.history.exemptions.append(Exemption(game.kept["offset_set_at"], reason, until=time.time()))
    found = game.fleet.committed()
    game.step(f"kafka-consumer-groups --describe: partition 0 is at {found[0]} of {game.load.ends[0]}")


def execute(game: Game, sql: str) -> None:
    """Runs one statement in ClickHouse."""
    server = clickhouse.client(game.settings)
    try:
        server.command(sql)
    finally:
        server.close()


TWO_READERS = 'count(up{job="replays-reader"} == 1) == 2'
ALL_PARTITIONS_ASSIGNED = "sum(replays_reader_partitions_assigned) == 4"
CONSUMING = "sum(rate(replays_reader_messages_consumed_total[5s])) > 0"
COMPLETIONS_ARRIVE = "sum(rate(replays_worker_completions_total[5s])) > 0"
NOTHING_PARKED = "max(replays_reader_parked_oldest_seconds) == 0"
REDIS_HAS_FREE_MEMORY = "max(replays_reader_redis_used_bytes / (replays_reader_redis_max_bytes > 0)) < 0.7"


def closed(sink: str) -> str:
    """Returns a Prometheus expression that is true while all readers report this sink's breaker as closed."""
    return f'max(replays_reader_breaker_state{{sink="{sink}"}}) == 0'


FAULTS = (
    Fault("one reader killed", "ReplaysReaderDown", kill_reader, start_reader, TWO_READERS),
    Fault("all workers killed", "ReplaysNobodyFlushes", kill_workers, start_workers, COMPLETIONS_ARRIVE),
    Fault(
        "a queue without a worker",
        "ReplaysQueueWithoutWorker",
        omit_queue,
        consume_all_queues,
        "min(replays_reader_queue_consumers) > 0",
    ),
    Fault("all readers killed", "ReplaysNoReader", kill_readers, start_readers, TWO_READERS),
    Fault(
        "a reader outlives its session",
        "ReplaysPartitionsLost",
        outlive_session,
        do_nothing,
        ALL_PARTITIONS_ASSIGNED,
    ),
    Fault("Kafka killed", "ReplaysNothingAssigned", kill_kafka, start_kafka, ALL_PARTITIONS_ASSIGNED),
    Fault(
        "readers cannot log in to Kafka",
        "ReplaysNothingAssigned",
        refuse_login,
        correct_login,
        ALL_PARTITIONS_ASSIGNED,
    ),
    Fault("the producers stop", "ReplaysNothingConsumed", stop_producers, start_producers, CONSUMING),
    Fault("Redis killed", "ReplaysRedisDown", kill_redis, start_redis, "min(replays_reader_redis_up) == 1"),
    Fault(
        "Redis fails over, but its address still resolves to the old primary",
        "ReplaysRedisDown",
        demote_redis,
        promote_redis,
        "min(replays_reader_redis_up) == 1",
    ),
    Fault("Redis full", "ReplaysRedisFull", fill_redis, enlarge_redis, REDIS_HAS_FREE_MEMORY),
    Fault(
        "one worker cut off from Redis",
        "ReplaysWorkerLostRedis",
        disconnect_worker,
        delete_worker,
        "max(replays_worker_heartbeat_seconds) < 5",
    ),
    Fault("ClickHouse hangs", "ReplaysSinkSick", hang_clickhouse, fix_clickhouse, closed("clickhouse")),
    Fault("Cloud Storage responds with 503", "ReplaysFlushesGiveUp", refuse_uploads, fix_uploads, closed("gcs")),
    Fault(
        "ClickHouse refuses the password",
        "ReplaysBatchParked",
        refuse_password,
        correct_password,
        NOTHING_PARKED,
    ),
    Fault(
        "rows that sinks refuse",
        "ReplaysItemsRefused",
        refuse_rows,
        replay_refused,
        "sum(rate(replays_worker_items_refused_total[10s])) == 0",
        find_replayed,
    ),
    Fault(
        "BigQuery's table lacks a column",
        "ReplaysBatchParked",
        lose_column,
        migrate_and_retry,
        NOTHING_PARKED,
        repair,
    ),
    Fault(
        "offset beyond the log",
        "ReplaysOffsetOutOfRange",
        commit_past_end,
        compare_offsets,
        "max(replays_reader_lag_seconds) < 10",
    ),
    Fault(
        "one project sends malformed messages",
        "ReplaysRejects",
        send_garbage,
        shed_project,
        "sum(rate(replays_reader_rejects_total[10s])) == 0",
        fix_sdk,
    ),
    Fault(
        "half of all messages are malformed and from one project",
        "ReplaysProjectShed",
        send_garbage_of_one_project,
        shed_project,
        "max(replays_reader_projects_shed) == 0",
        fix_sdk,
    ),
    Fault(
        "half of all messages are malformed",
        "ReplaysHalted",
        send_mostly_garbage,
        roll_back_producer,
        "max(replays_reader_halted) == 0",
        ordinary_ratio,
    ),
    # This fault comes last, because its record stays in the topic and blocks every reader that reads it again.
    # After a commit beyond the end of the log, for example, readers start again from the beginning.
    Fault(
        "a record that decompresses beyond the limit",
        "ReplaysLag",
        send_bomb,
        skip_bomb,
        "max(replays_reader_lag_seconds) < 10",
    ),
)
