-- Internal. The version shown for an inspection: the champion where it has finished, else the one that has finished and
-- scored most, then the champion, then the version that was champion last. One row per inspection.
create view shown_inspection as
select inspection_summary.inspection_id as inspection_id, inspection_summary.model_version_id as model_version_id
from inspection_summary
join shown_version on shown_version.model_version_id = inspection_summary.model_version_id
where not exists (
    select 1
    from inspection_summary as other
    join shown_version as candidate on candidate.model_version_id = other.model_version_id
    where other.inspection_id = inspection_summary.inspection_id
        and other.model_version_id <> inspection_summary.model_version_id
        and (
            other.waiting = 0 and candidate.is_champion,
            other.waiting = 0,
            other.scored,
            candidate.is_champion,
            candidate.promoted_at,
            candidate.model_version_id
        ) > (
            inspection_summary.waiting = 0 and shown_version.is_champion,
            inspection_summary.waiting = 0,
            inspection_summary.scored,
            shown_version.is_champion,
            shown_version.promoted_at,
            shown_version.model_version_id
        )
)
