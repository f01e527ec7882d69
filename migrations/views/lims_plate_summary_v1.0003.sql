-- One row an inspection, as the champion sees it; until the champion has seen all of it, as the last champion that did.
create view lims_plate_summary_v1 as
with champion as (
    select model_alias.model_version_id as id from model_alias where model_alias.alias = 'champion'
),
ranked as (
    select
        inspection_summary.*,
        row_number() over (
            partition by inspection_summary.inspection_id
            order by
                case
                    when inspection_summary.model_version_id = (select champion.id from champion)
                        then case when inspection_summary.complete then 0 else 2 end
                    when inspection_summary.complete then 1
                    else 3
                end,
                inspection_summary.updated_at desc,
                inspection_summary.model_version_id desc
        ) as choice
    from inspection_summary
    -- A version that was never champion, such as a challenger, does not speak here.
    join model_version on model_version.id = inspection_summary.model_version_id
    where model_version.promoted_at is not null
)
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
    ranked.n_clear as n_clear,
    ranked.n_crystals as n_crystals,
    ranked.n_other as n_other,
    ranked.n_precipitate as n_precipitate,
    ranked.hits as hits,
    ranked.best_wells as best_wells,
    ranked.expected as expected,
    ranked.seen as seen,
    ranked.scored as scored,
    ranked.failed as failed,
    ranked.complete as complete,
    ranked.complete_rule as complete_rule,
    ranked.first_image_at as first_image_at,
    ranked.last_image_at as last_image_at,
    ranked.updated_at as updated_at,
    ranked.labelled as labelled,
    plate.project as project,
    plate.screen as screen
from ranked
join inspection on inspection.id = ranked.inspection_id
join plate on plate.id = inspection.plate_id
join source on source.id = plate.source_id
join model_version on model_version.id = ranked.model_version_id
where ranked.choice = 1
