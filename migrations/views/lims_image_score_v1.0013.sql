-- Every score ever given, with the image it belongs to and the model version that gave it.
create view lims_image_score_v1 as
select
    score.id as score_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    inspection.key as inspection_key,
    inspection.ordinal as inspection_ordinal,
    "drop".well as well,
    "drop".well_row as well_row,
    "drop".well_column as well_column,
    "drop".drop_number as drop_number,
    image.id as image_id,
    image.path as path,
    image.modality as modality,
    image.captured_at as captured_at,
    model_version.name as model,
    model_version.version as model_version,
    model_version.digest as model_digest,
    model_version.synthetic as model_synthetic,
    score.content_hash as content_hash,
    score.p_clear as p_clear,
    score.p_crystals as p_crystals,
    score.p_other as p_other,
    score.p_precipitate as p_precipitate,
    score.label as label,
    score.p_crystals >= model_version.crystal_threshold as hit,
    score.content_hash = image.content_hash and (
        score.model_version_id = coalesce(
            (select model_alias.model_version_id from model_alias where model_alias.alias = 'champion'), -1
        )
        or score.id = image.gone_score_id and not exists (
            select 1
            from score as champions
            where champions.image_id = image.id
                and champions.content_hash = image.content_hash
                and champions.model_version_id = (
                    select model_alias.model_version_id from model_alias where model_alias.alias = 'champion'
                )
        )
    ) as is_current,
    score.scored_at as scored_at,
    score.engine as engine
from score
join image on image.id = score.image_id
join "drop" on "drop".id = image.drop_id
join inspection on inspection.id = image.inspection_id
-- Source and plate are joined so that who asks for a plate never reads its source's images from end to end.
join plate on plate.id = inspection.plate_id and plate.id = "drop".plate_id
join source on source.id = plate.source_id
join model_version on model_version.id = score.model_version_id
