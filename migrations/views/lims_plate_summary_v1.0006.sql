-- One row an inspection, as the champion sees it; until the champion has seen all of it, as the last champion that did.
create view lims_plate_summary_v1 as
select
    inspection.id as inspection_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    inspection.key as inspection_key,
    inspection.ordinal as inspection_ordinal,
    model_version.name as model,
    model_version.version as model_version,
    model_version.synthetic as model_synthetic,
    inspection_summary.n_clear as n_clear,
    inspection_summary.n_crystals as n_crystals,
    inspection_summary.n_other as n_other,
    inspection_summary.n_precipitate as n_precipitate,
    inspection_summary.hits as hits,
    inspection_summary.best_wells as best_wells,
    inspection_summary.expected as expected,
    inspection_summary.seen as seen,
    inspection_summary.scored as scored,
    inspection_summary.failed as failed,
    inspection_summary.complete as complete,
    inspection_summary.complete_rule as complete_rule,
    inspection_summary.first_image_at as first_image_at,
    inspection_summary.last_image_at as last_image_at,
    inspection_summary.updated_at as updated_at,
    inspection_summary.labelled as labelled,
    plate.project as project,
    plate.screen as screen,
    model_version.crystal_threshold as crystal_threshold
from inspection_summary
join inspection on inspection.id = inspection_summary.inspection_id
join plate on plate.id = inspection.plate_id
join source on source.id = plate.source_id
join model_version on model_version.id = inspection_summary.model_version_id
-- A version that was never champion, such as a challenger, does not speak here.
where model_version.promoted_at is not null and (
    inspection_summary.complete and inspection_summary.model_version_id = coalesce(
        (select model_alias.model_version_id from model_alias where model_alias.alias = 'champion'), -1
    )
    or not exists (
        select 1
        from inspection_summary as other
        join model_version as candidate on candidate.id = other.model_version_id
        where other.inspection_id = inspection_summary.inspection_id
            and candidate.promoted_at is not null
            and (
                other.complete,
                other.model_version_id = coalesce(
                    (select model_alias.model_version_id from model_alias where model_alias.alias = 'champion'), -1
                ),
                other.updated_at,
                other.model_version_id
            ) > (
                inspection_summary.complete,
                inspection_summary.model_version_id = coalesce(
                    (select model_alias.model_version_id from model_alias where model_alias.alias = 'champion'), -1
                ),
                inspection_summary.updated_at,
                inspection_summary.model_version_id
            )
    )
)
