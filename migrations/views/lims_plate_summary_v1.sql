-- One row per inspection, of the champion; until the champion has finished it, of the version that has scored most.
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
    model_version.crystal_threshold as crystal_threshold,
    inspection_summary.gone as gone
from shown_inspection
join inspection_summary on inspection_summary.inspection_id = shown_inspection.inspection_id
    and inspection_summary.model_version_id = shown_inspection.model_version_id
join inspection on inspection.id = inspection_summary.inspection_id
join plate on plate.id = inspection.plate_id
join source on source.id = plate.source_id
join model_version on model_version.id = inspection_summary.model_version_id
