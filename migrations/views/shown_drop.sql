-- Internal. The version shown for a drop: the one that has scored most of its inspections, then the champion, then the
-- version that was champion last. One row per drop.
create view shown_drop as
select drop_summary.drop_id as drop_id, drop_summary.model_version_id as model_version_id
from drop_summary
join shown_version on shown_version.model_version_id = drop_summary.model_version_id
where not exists (
    select 1
    from drop_summary as other
    join shown_version as candidate on candidate.model_version_id = other.model_version_id
    where other.drop_id = drop_summary.drop_id
        and other.model_version_id <> drop_summary.model_version_id
        and (
            other.scored_inspections,
            candidate.is_champion,
            candidate.promoted_at,
            candidate.model_version_id
        ) > (
            drop_summary.scored_inspections,
            shown_version.is_champion,
            shown_version.promoted_at,
            shown_version.model_version_id
        )
)
