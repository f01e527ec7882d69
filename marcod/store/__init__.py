"""Data that the scoring transaction touches: the queue, scores, model versions, labels, events and derived rows.

``queue`` alone changes jobs; archives that are scored again are ``campaigns``, of which workers take ``ranges``;
``results`` writes a scored batch; ``verdicts`` decides which image and label count;
``derived`` keeps ``summaries`` and ``drops`` true after every change; ``serving`` moves aliases between ``versions``,
and ``promotions`` makes the rows of one that scored in silence before it is champion;
``votes`` keeps labels; ``events`` and ``outbox`` notify; ``audit_log`` records acts.

Lock order: every transaction locks rows in the order champion alias, promotion, source, plates, images, ranges, jobs,
inspections, drops, campaigns, and within a table by id. ``locks.hold`` keeps it. Two transactions that locked in
different orders would wait for each other in a ring, and one that computes a derived row without its lock would miss
what another is about to commit. Images that turn out to be copies come late and are locked without waiting;
``Database.write`` repeats the loser.
"""
