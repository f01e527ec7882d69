"""The tables, as the code sees them. The migrations create them; a test compares the two.

Times are UTC. A path is text in the escaped form of ``domain.path_text``. Names of constraints follow one
convention, so that migrations can name what they change.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from marcod.database.column_types import BigId as BigId
from marcod.database.column_types import UtcDateTime as UtcDateTime
from marcod.database.column_types import folded_from, index_where, key, optional, ref, required
from marcod.database.column_types import metadata as metadata

source = Table(
    "source",
    metadata,
    key(),
    Column("name", sa.Text, nullable=False, unique=True),
    *required(sa.Text, "layout", "reading"),
    Column("expected_drops", sa.Integer),
    Column("created_at", UtcDateTime, nullable=False),
)

plate = Table(
    "plate",
    metadata,
    key(),
    ref("source_id", "source"),
    Column("key", sa.Text, nullable=False),
    Column("barcode", sa.Text, index=True),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("project", sa.Text, index=True),
    Column("screen", sa.Text),
    *optional(sa.Integer, "format_rows", "format_columns", "format_drops"),
    Column("split_source", sa.Text),
    Column("key_folded", sa.Text, index=True, default=folded_from("key")),
    Column("barcode_folded", sa.Text, index=True, default=folded_from("barcode")),
    Column("reservoirs", sa.Text),
    Column("reread_after", BigId),
    UniqueConstraint("source_id", "key"),
    index_where("reread_after is not null", "ix_plate_reread_after", "reread_after"),
)
"""A plate of a source, by its key.

Rows and columns were imported with the drops of a well; without ``format_drops`` they are inferred from well numbers.
``reservoirs`` lists, with commas, the subwells without a drop. After both changed, the plate's images are read again;
``reread_after`` is the last one that was, and null when none is left. The folded names are those by which plates are
found; who changes a barcode changes both. ``split_source`` is the source whose name decides the plate's side of a data
set, where it has another name now.
"""

drop = Table(
    "drop",
    metadata,
    key(),
    ref("plate_id", "plate"),
    Column("well", sa.Text, nullable=False),
    *required(sa.Integer, "well_row", "well_column", "drop_number"),
    UniqueConstraint("plate_id", "well_row", "well_column", "drop_number"),
)

inspection = Table(
    "inspection",
    metadata,
    key(),
    ref("plate_id", "plate"),
    Column("key", sa.Text, nullable=False),
    Column("ordinal", sa.Integer),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("order_key", sa.Text),
    UniqueConstraint("plate_id", "key"),
)

image = Table(
    "image",
    metadata,
    key(),
    ref("source_id", "source"),
    Column("path", sa.Text, nullable=False),
    ref("drop_id", "drop", index=True),
    ref("inspection_id", "inspection", index=True),
    Column("modality", sa.Text, nullable=False),
    Column("profile", sa.Text),
    Column("region", sa.BigInteger),
    Column("captured_at", UtcDateTime),
    *required(sa.BigInteger, "size", "mtime_ns"),
    Column("content_hash", sa.Text),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("warnings", sa.Text),
    Column("unread", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("gone_at", UtcDateTime),
    Column("gone_score_id", BigId),
    Column("gone_accepted", sa.Boolean),
    Column("same_as_id", BigId),
    UniqueConstraint("source_id", "path"),
    index_where("gone_at is not null", "ix_image_gone_at", "gone_at"),
    index_where("same_as_id is not null", "ix_image_same_as_id", "same_as_id"),
)
"""One row per file. ``content_hash`` names the bytes that were read last; ``unread`` says that the file changed since.

``gone_at`` is when the file was found gone for good; ``gone_score_id`` is the score that goes on counting for it, and
``gone_accepted`` says that a person or a setting accepted that. ``same_as_id`` names the image that counts instead,
where a file of the same bytes shows the same drop at the same inspection: a file that was moved, or a copy.
``warnings`` lists, with commas, the kinds of what its layout warned of when it was recorded.
"""

model_version = Table(
    "model_version",
    metadata,
    key(),
    *required(sa.Text, "name", "version", "digest", "modality"),
    Column("crystal_threshold", sa.Float, nullable=False),
    Column("synthetic", sa.Boolean, nullable=False),
    Column("registered_at", UtcDateTime, nullable=False),
    *optional(UtcDateTime, "promoted_at", "removed_at"),
    Column("trained_on", sa.Text),
    UniqueConstraint("name", "version"),
)
"""One row per version; ``trained_on`` lists, with commas, what its weights learned from: published, rendered, lab."""

model_alias = Table(
    "model_alias",
    metadata,
    Column("alias", sa.Text, primary_key=True),
    ref("model_version_id", "model_version"),
    Column("set_at", UtcDateTime, nullable=False),
)

promotion = Table(
    "promotion",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    ref("model_version_id", "model_version"),
    Column("actor", sa.Text, nullable=False),
    *required(UtcDateTime, "begun_at", "moved_at"),
    *required(BigId, "last_plate_id", "end_plate_id"),
    *required(sa.BigInteger, "done", "plates"),
)
"""One row at most: the version that becomes champion once its rows of all plates up to ``end_plate_id`` are there.

They are up to ``last_plate_id``, which are ``done`` of so many plates; ``moved_at`` is when that was written.
"""


job = Table(
    "job",
    metadata,
    key(),
    ref("image_id", "image"),
    ref("model_version_id", "model_version"),
    Column("priority", sa.Integer, nullable=False),
    Column("available_at", UtcDateTime, nullable=False),
    Column("attempts", sa.Integer, nullable=False),
    Column("lease", sa.Text),
    Column("lapsed", sa.Boolean),
    Column("error", sa.Text),
    Column("failed_at", UtcDateTime),
    Column("enqueued_at", UtcDateTime, nullable=False),
    UniqueConstraint("image_id", "model_version_id"),
    index_where("failed_at is null", "ix_job_next", "priority", "available_at", "id"),
    index_where("failed_at is null", "ix_job_next_of_version", "model_version_id", "priority", "available_at", "id"),
    index_where("lease is not null", "ix_job_leased", "available_at"),
    index_where("failed_at is not null", "ix_job_failed", "failed_at"),
)

score = Table(
    "score",
    metadata,
    key(),
    ref("image_id", "image"),
    ref("model_version_id", "model_version"),
    Column("content_hash", sa.Text, nullable=False),
    *required(sa.Float, "p_clear", "p_crystals", "p_other", "p_precipitate"),
    Column("label", sa.Text, nullable=False),
    Column("vector", sa.JSON),
    Column("scored_at", UtcDateTime, nullable=False),
    *optional(sa.Float, "brightness", "contrast", "focus"),
    Column("engine", sa.Text),
    UniqueConstraint("image_id", "model_version_id", "content_hash"),
    Index("ix_score_model_version_id", "model_version_id", "id"),
)

campaign = Table(
    "campaign",
    metadata,
    key(),
    ref("model_version_id", "model_version", index=True),
    Column("source_id", BigId, ForeignKey("source.id")),
    Column("since", UtcDateTime),
    *required(sa.Text, "state", "actor"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    *required(sa.BigInteger, "images", "done", "scored"),
    index_where("ended_at is null", "ix_campaign_open", "id"),
)
"""An archive that a version scores again, of one source or all, of images seen since then or all.

``images`` were owed when it began. ``done`` and ``scored`` are those of the ranges that ended.
"""

campaign_range = Table(
    "campaign_range",
    metadata,
    key(),
    ref("campaign_id", "campaign"),
    *required(BigId, "first_inspection_id", "last_inspection_id", "mark_inspection_id", "mark_image_id"),
    *required(sa.Integer, "images", "done", "scored"),
    *optional(sa.Text, "lease", "error"),
    Column("available_at", UtcDateTime),
    *required(sa.Integer, "lapses", "pauses"),
    Index("ix_campaign_range_campaign_id", "campaign_id", "id"),
)
"""Inspections of a campaign that are not all done: those up to the mark are, in the order of inspection and image.

A range under a ``lease`` is in a worker's hands until ``available_at``; one without is free from then on, or now where
that is null. ``lapses`` counts the workers that died with it, ``pauses`` how often it was put off since it last moved.
"""

label = Table(
    "label",
    metadata,
    key(),
    ref("drop_id", "drop", index=True),
    ref("inspection_id", "inspection", index=True),
    Column("image_id", BigId, ForeignKey("image.id"), index=True),
    Column("label", sa.Text),
    *required(sa.Text, "original", "vocabulary", "person", "origin"),
    Column("labelled_at", UtcDateTime, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False, index=True),
    Column("key", sa.Text, nullable=False, unique=True),
    Column("request", sa.Text),
    index_where("request is not null", "ix_label_request", "request", unique=True),
)
"""Append-only. A null ``label`` withdraws what its person said before; ``key`` makes repeats harmless.

``request`` is the name that the page gave to one answer of a person, so that sending it again adds nothing.
"""


inspection_summary = Table(
    "inspection_summary",
    metadata,
    Column("inspection_id", BigId, ForeignKey("inspection.id"), primary_key=True),
    Column("model_version_id", BigId, ForeignKey("model_version.id"), primary_key=True),
    *required(sa.Integer, "n_clear", "n_crystals", "n_other", "n_precipitate", "hits"),
    Column("best_wells", sa.Text, nullable=False),
    Column("expected", sa.Integer),
    *required(sa.Integer, "seen", "scored", "failed"),
    Column("complete", sa.Boolean, nullable=False),
    Column("complete_rule", sa.Text),
    Column("first_image_at", UtcDateTime),
    Column("last_image_at", UtcDateTime, index=True),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("labelled", sa.Integer, nullable=False, server_default="0"),
    Column("waiting", sa.Integer, nullable=False, server_default="0"),
    Column("gone", sa.Integer, nullable=False, server_default="0"),
    index_where("not complete and waiting = 0", "ix_inspection_summary_open", "last_image_at"),
    index_where("not complete", "ix_inspection_summary_unfinished", "inspection_id"),
)
"""One row per inspection and version. ``waiting`` images are still to be scored; the drops counted as ``gone`` were
never scored and their files are gone."""

drop_summary = Table(
    "drop_summary",
    metadata,
    Column("drop_id", BigId, ForeignKey("drop.id"), primary_key=True),
    Column("model_version_id", BigId, ForeignKey("model_version.id"), primary_key=True),
    *required(sa.Integer, "inspections", "scored_inspections"),
    *required(BigId, "inspection_id", "image_id"),
    *optional(sa.Float, "p_clear", "p_crystals", "p_other", "p_precipitate"),
    *optional(sa.Text, "label", "label_person"),
    Column("label_disputed", sa.Boolean, nullable=False),
    Column("highest_p_crystals", sa.Float),
    Column("best_image_id", BigId),
    Column("hit", sa.Boolean, nullable=False),
    *optional(BigId, "first_hit_inspection_id", "first_hit_image_id"),
    Column("trend", sa.Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("score_version_id", BigId),
    index_where("first_hit_inspection_id is not null", "ix_drop_summary_hits", "highest_p_crystals", "drop_id"),
)
"""A drop through all its inspections, as one model version and the people who labelled it see it.

Its images and inspections carry no constraint: each would need an index here, or removing one image would read all.
``score_version_id`` is set where the probabilities are another version's, because the file is gone.
"""

hit = Table(
    "hit",
    metadata,
    key(),
    ref("drop_id", "drop"),
    ref("inspection_id", "inspection", index=True),
    ref("image_id", "image", index=True),
    ref("model_version_id", "model_version"),
    *required(sa.Float, "p_crystals", "threshold"),
    Column("found_at", UtcDateTime, nullable=False, index=True),
    Column("cause", sa.Text, nullable=False, server_default="new"),
    Column("score_version_id", BigId),
    Column("ended_at", UtcDateTime),
    UniqueConstraint("drop_id", "model_version_id"),
)

label_inbox = Table(
    "label_inbox",
    metadata,
    key(),
    *optional(sa.Text, "source", "plate", "well"),
    Column("drop_number", sa.Integer),
    *optional(sa.Text, "inspection", "label", "person"),
    Column("labelled_at", UtcDateTime),
    Column("received_at", UtcDateTime, nullable=False, server_default=sa.func.current_timestamp()),
    Column("state", sa.Text, nullable=False, server_default="waiting"),
    Column("reason", sa.Text),
    Column("tried_at", UtcDateTime),
    Column("label_id", BigId, ForeignKey("label.id")),
    Index("ix_label_inbox_state_tried_at", "state", "tried_at"),
)
"""Rows that a LIMS wrote through ``lims_label_inbox_v1``: natural keys, not yet checked against anything."""

review_round = Table(
    "review_round",
    metadata,
    key(),
    ref("model_version_id", "model_version"),
    Column("threshold", sa.Float, nullable=False),
    Column("strata", sa.JSON, nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    Column("drawn_at", UtcDateTime, nullable=False),
)
"""A random draw of drops for an audit; ``strata`` says of how many drops each kind was drawn and how many."""

review_item = Table(
    "review_item",
    metadata,
    key(),
    ref("drop_id", "drop"),
    ref("inspection_id", "inspection", index=True),
    ref("image_id", "image", index=True),
    *required(sa.Text, "stream", "reason"),
    ref("model_version_id", "model_version"),
    Column("p_crystals", sa.Float),
    Column("round_id", BigId, ForeignKey("review_round.id"), index=True),
    Column("stratum", sa.Integer),
    Column("inclusion", sa.Float),
    Column("rank", sa.Float, nullable=False),
    Column("proposed_at", UtcDateTime, nullable=False),
    Column("person", sa.Text),
    Column("shown_at", UtcDateTime),
    Column("answer", sa.Text),
    Column("answered_at", UtcDateTime),
    UniqueConstraint("drop_id", "inspection_id", "stream"),
    index_where("answered_at is null", "ix_review_item_open", "stream", "rank", "id"),
)
"""Drops to be reviewed, and why; ``inclusion`` is the probability with which an audit drew one."""

dataset = Table(
    "dataset",
    metadata,
    key(),
    Column("digest", sa.Text, nullable=False, unique=True),
    Column("gate_digest", sa.Text, nullable=False, index=True),
    Column("last_label_id", BigId),
    *required(sa.Integer, "images", "drops", "crystals", "missing", "changed"),
    Column("counts", sa.JSON, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
)
"""A frozen set of labelled images; ``digest`` is the SHA-256 of its manifest, ``gate_digest`` that of its test side."""

training_run = Table(
    "training_run",
    metadata,
    key(),
    Column("active", sa.Boolean, unique=True),
    *required(sa.Text, "state", "cause", "actor", "recipe"),
    Column("options", sa.JSON, nullable=False),
    Column("parent", sa.Text),
    Column("dataset_id", BigId, ForeignKey("dataset.id"), index=True),
    *optional(sa.Text, "tier", "candidate"),
    Column("candidate_digest", sa.Text, index=True),
    *required(sa.Text, "folder", "host"),
    Column("pid", sa.Integer, nullable=False),
    Column("token", sa.Text, nullable=False),
    Column("step", sa.Text),
    *optional(sa.JSON, "reasons", "numbers"),
    Column("error", sa.Text),
    *required(UtcDateTime, "started_at", "beat_at"),
    Column("ended_at", UtcDateTime),
)
"""One attempt to make a better model. ``active`` is true for the one that runs and null for all others."""

drift_reference = Table(
    "drift_reference",
    metadata,
    key(),
    ref("source_id", "source"),
    Column("modality", sa.Text, nullable=False),
    ref("model_version_id", "model_version"),
    Column("images", sa.Integer, nullable=False),
    Column("statistics", sa.JSON, nullable=False),
    *required(UtcDateTime, "first_at", "last_at", "made_at"),
    UniqueConstraint("source_id", "modality", "model_version_id"),
)
"""Statistics of an imager's images and scores, when a model version began to score them."""

drift_day = Table(
    "drift_day",
    metadata,
    key(),
    ref("source_id", "source"),
    Column("modality", sa.Text, nullable=False),
    ref("model_version_id", "model_version"),
    Column("day", sa.Date, nullable=False),
    *required(sa.Integer, "images", "failures"),
    Column("statistics", sa.JSON, nullable=False),
    Column("made_at", UtcDateTime, nullable=False),
    UniqueConstraint("source_id", "modality", "model_version_id", "day"),
)

drift_alarm = Table(
    "drift_alarm",
    metadata,
    key(),
    ref("source_id", "source"),
    Column("modality", sa.Text, nullable=False),
    ref("model_version_id", "model_version"),
    Column("signal", sa.Text, nullable=False),
    Column("day", sa.Date, nullable=False),
    *optional(sa.Float, "value", "reference"),
    Column("p_value", sa.Float, nullable=False),
    Column("detail", sa.Text, nullable=False),
    Column("raised_at", UtcDateTime, nullable=False),
    Column("cleared_at", UtcDateTime),
    UniqueConstraint("source_id", "modality", "model_version_id", "signal", "day"),
)
"""Drift of an imager; open until it is as before, or a person clears it."""

worker = Table(
    "worker",
    metadata,
    Column("name", sa.Text, primary_key=True),
    Column("host", sa.Text, nullable=False),
    Column("pid", sa.Integer, nullable=False),
    *required(sa.Text, "roles", "marcod_version"),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False, index=True),
    Column("revision", sa.Text),
    Column("left_to_others", sa.JSON),
)
"""Every living process; ``revision`` is the newest step of the schema that it knows."""

watch_state = Table(
    "watch_state",
    metadata,
    Column("source_id", BigId, ForeignKey("source.id"), primary_key=True),
    *required(sa.Text, "worker", "host"),
    *required(sa.Boolean, "root_there", "observing"),
    Column("trouble", sa.Text),
    *required(sa.Integer, "pending", "waiting"),
    Column("walking", sa.Boolean, nullable=False),
    Column("walked_files", sa.BigInteger, nullable=False),
    Column("unreadable", sa.Integer, nullable=False),
    *optional(UtcDateTime, "walked_at", "walked_whole_at", "round_at"),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""State of watching a source, written by its watcher every few seconds.

``pending`` files have not settled, ``waiting`` ones lack a companion file; ``walked_files`` is how far the walk
under way is, or the last one came; ``round_at`` is when its thread last showed life.
"""

source_root = Table(
    "source_root",
    metadata,
    Column("source_id", BigId, ForeignKey("source.id"), primary_key=True),
    Column("host", sa.Text, primary_key=True),
    Column("root", sa.Text, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Index("ix_source_root_host_root", "host", "root"),
)
"""Where a host finds the files of a source; a path means nothing on another host."""

source_finding = Table(
    "source_finding",
    metadata,
    Column("source_id", BigId, ForeignKey("source.id"), primary_key=True),
    Column("kind", sa.Text, primary_key=True),
    Column("reason", sa.Text, primary_key=True),
    *required(sa.BigInteger, "files", "of_files"),
    Column("example", sa.Text, nullable=False),
    Column("hint", sa.Text),
    *required(sa.Integer, "hint_files", "asked"),
    Column("accepted", sa.Boolean, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""Files of a source that its layout did not understand or warned of: one row per kind and reason, with an example.

``of_files`` are all images of the source; ``hint`` is the family that reads ``hint_files`` of ``asked`` files.
"""


event = Table(
    "event",
    metadata,
    key(),
    Column("kind", sa.Text, nullable=False),
    Column("subject", sa.Text, nullable=False, unique=True),
    Column("source_id", BigId, ForeignKey("source.id")),
    Column("project", sa.Text),
    Column("detail", sa.JSON, nullable=False),
    Column("happened_at", UtcDateTime, nullable=False, index=True),
    Column("dispatched_at", UtcDateTime),
    index_where("dispatched_at is null", "ix_event_untold", "id"),
)
"""Events to notify people of, written with their facts; ``subject`` makes each happen once."""

delivery = Table(
    "delivery",
    metadata,
    key(),
    ref("event_id", "event"),
    Column("target", sa.Text, nullable=False),
    Column("message", sa.Text, index=True),
    Column("attempts", sa.Integer, nullable=False),
    Column("available_at", UtcDateTime, nullable=False),
    Column("lease", sa.Text),
    *optional(UtcDateTime, "sent_at", "failed_at"),
    Column("error", sa.Text),
    UniqueConstraint("event_id", "target"),
    index_where("sent_at is null and failed_at is null", "ix_delivery_unsent", "target", "available_at"),
)
"""An event for one target; those of one ``message`` are sent together, under that name however often it takes."""

schema_mark = Table(
    "schema_mark",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("oldest_revision", sa.Text, nullable=False),
)
"""One row: a marcod that knows this step can work, whatever was added after it."""

audit = Table(
    "audit",
    metadata,
    key(),
    Column("at", UtcDateTime, nullable=False, index=True),
    *required(sa.Text, "actor", "action", "subject"),
    Column("detail", sa.JSON),
)

web_user = Table(
    "web_user",
    metadata,
    Column("name", sa.Text, primary_key=True),
    *required(sa.Text, "role", "password"),
    Column("created_at", UtcDateTime, nullable=False),
)
"""An account of the page; ``role`` is viewer or labeller, ``password`` is its salted scrypt hash."""

web_session = Table(
    "web_session",
    metadata,
    Column("token_hash", sa.Text, primary_key=True),
    Column("user_name", sa.Text, ForeignKey("web_user.name"), nullable=False, index=True),
    *required(UtcDateTime, "created_at", "seen_at"),
    Column("ended_at", UtcDateTime),
)
"""A login of an account; the browser alone has the token."""

SECRET: Final = frozenset({"web_user", "web_session"})
"""Tables that the role of a LIMS does not read."""

drop_mark = Table(
    "drop_mark",
    metadata,
    key(),
    ref("drop_id", "drop", index=True),
    ref("inspection_id", "inspection", index=True),
    *required(sa.Text, "kind", "text", "person"),
    Column("marked_at", UtcDateTime, nullable=False),
    Column("request", sa.Text, unique=True),
)
"""Append-only. A note on a drop, or that its crystals were harvested or, by mistake, were not: see ``MarkKind``."""

follow = Table(
    "follow",
    metadata,
    Column("drop_id", BigId, ForeignKey("drop.id"), primary_key=True),
    Column("person", sa.Text, primary_key=True, index=True),
    Column("since", UtcDateTime, nullable=False),
)
"""Drops that a person follows; the row goes when they stop."""
