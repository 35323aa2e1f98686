"""Reading, writing, head mask, and normalisation."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from data.files.volumes import read_header, read_volume, write_like, write_volume
from data.scans.checks import check_headers, find_head, read_binary, read_spacing, require_mask_in_head
from data.scans.cohort import Case
from data.scans.head import head_mask, normalise, otsu_threshold
from tests.drawn import ball
from tests.fuzz_readers import try_readers, valid_files, write_edited, write_mutated
from utils.errors import UserError


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return (a & b).sum() / (a | b).sum()


def image_of(shape=(4, 5, 6), kind=nib.Nifti1Image, **fields) -> nib.Nifti1Image:
    """An image of random voxels of 1 mm by its sform, whose header says what `fields` say, contradicting or not."""
    image = kind(np.random.default_rng(0).random(shape, np.float32), None)  # nibabel brings no affine into line
    image.header.set_sform(np.eye(4), 2)
    for name, value in fields.items():
        image.header[name] = value
    return image


# --- reading and writing -------------------------------------------------------------------------------


def test_npy_is_c_h_w_d_on_disk_and_c_d_h_w_in_memory(tmp_path):
    on_disk = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)
    np.save(tmp_path / "a.npy", on_disk)
    volume = read_volume(tmp_path / "a.npy")
    assert volume.array.shape == (1, 4, 2, 3) and volume.spacing_mm is None
    assert volume.array[0, 3, 1, 2] == on_disk[0, 1, 2, 3]
    assert read_header(tmp_path / "a.npy").shape[1:] == (4, 2, 3)


@pytest.mark.parametrize("ext", [".npy", ".nii", ".nii.gz"])
def test_what_is_written_is_read_back(tmp_path, ext):
    array = np.random.default_rng(0).random((1, 4, 5, 6), np.float32)
    write_volume(tmp_path / f"a{ext}", array, np.diag([2, 3, 4, 1.0]))
    volume = read_volume(tmp_path / f"a{ext}")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.spacing_mm == (None if ext == ".npy" else (4, 2, 3))
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ext}"]


def test_nifti_of_any_orientation_is_read_as_ras(tmp_path):
    ras = np.random.default_rng(0).random((3, 4, 5), np.float32)
    # The same anatomy stored left to right reversed and with the axes in the order D, H, W.
    stored, affine = ras[::-1].transpose(2, 0, 1), np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[:, 3] = 3, -1, 2, (2, 0, 0, 1)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[0].transpose(1, 2, 0), ras)
    assert volume.spacing_mm == (3, 1, 2)
    assert read_header(tmp_path / "a.nii.gz").shape[1:] == (5, 3, 4)


def test_prediction_goes_back_into_the_scans_orientation_affine_and_shape(tmp_path):
    affine = np.array([[0, -1.0, 0, 9], [0, 0, 2.0, -7], [3.0, 0, 0, 5], [0, 0, 0, 1]])
    stored = (np.random.default_rng(0).random((5, 3, 4)) > 0.5).astype(np.uint8)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "scan.nii.gz")
    in_memory = read_volume(tmp_path / "scan.nii.gz", np.uint8).array[0]
    write_like(tmp_path / "prediction.nii.gz", in_memory, tmp_path / "scan.nii.gz")
    written = nib.load(tmp_path / "prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored)
    np.testing.assert_array_equal(written.affine, affine)


def test_broken_files_are_refused_by_name(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    np.save(tmp_path / "whole.npy", np.zeros((1, 4, 4, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-9])
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9)), np.eye(4)), tmp_path / "whole.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:-9])
    (tmp_path / "empty.nii.gz").touch()
    for name in ("pickled.npy", "flat.npy", "cut.npy", "cut.nii", "empty.nii.gz", "absent.npy"):
        with pytest.raises(UserError, match=name):
            read_volume(tmp_path / name)


def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    rng, files = np.random.default_rng(0), valid_files()
    outcomes = {try_readers(write_mutated(files, rng, tmp_path)[1]) for _ in range(1500)}
    assert outcomes == {"read", "refused"}


def test_of_ten_thousand_files_with_one_wrong_byte_none_is_read_with_changed_voxels(tmp_path):
    """Where the format has a checksum, that is in .nii.gz; a .npy has none, but it is read or refused by name."""
    rng, refused, image = np.random.default_rng(0), 0, image_of((20, 20, 20))  # more than a reader buffers at once
    stored = {".npy": valid_files()[".npy"], ".nii.gz": gzip.compress(image.to_bytes())}
    for _ in range(10_000):
        kind, path = write_edited(stored, rng, tmp_path)
        try:
            voxels = read_volume(path).array
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert kind == ".npy" or np.array_equal(voxels[0].transpose(1, 2, 0), image.dataobj)
    assert 5_000 < refused < 7_000  # nearly all .nii.gz: of their bytes, those of the time are not checked


# --- compression ---------------------------------------------------------------------------------------


def test_damaged_gzip_is_refused_whatever_part_of_it_is_damaged(tmp_path):
    path = tmp_path / "a.nii.gz"
    sound = gzip.compress(image_of((16, 16, 16)).to_bytes(), 0)  # level 0: a voxel is a byte of the file
    flipped, checksum = bytearray(sound), bytearray(sound)
    flipped[-40] ^= 1
    checksum[-8] ^= 1
    damaged = {"flipped": flipped, "checksum": checksum, "cut": sound[:-4], "half": sound[:9000], "tail": sound + b"x"}
    for content in damaged.values():
        path.write_bytes(content)
        assert read_header(path).shape == (1, 16, 16, 16)
        with pytest.raises(
            UserError, match=r"a\.nii\.gz is damaged and cannot be read \(.+\); copy or download it again"
        ):
            read_volume(path)


def test_gzip_of_several_members_is_read_to_its_end(tmp_path):
    image, path = image_of((16, 16, 16)), tmp_path / "a.nii.gz"
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    np.testing.assert_array_equal(read_volume(path).array[0].transpose(1, 2, 0), image.get_fdata())


def test_gzip_bomb_behind_the_voxels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.files.nifti.MAX_BYTES", 2**20)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(image_of().to_bytes() + bytes(2**25)))
    with pytest.raises(UserError, match="holds more than 1 MiB;"):
        read_volume(path)


def test_misnamed_compression_is_refused_with_the_right_name(tmp_path):
    plain, compressed, text = tmp_path / "b.nii.gz", tmp_path / "a.nii", tmp_path / "c.nii.gz"
    plain.write_bytes(image_of().to_bytes())
    compressed.write_bytes(gzip.compress(image_of().to_bytes()))
    text.write_text("see attachment")
    for reader in (read_header, read_volume):
        with pytest.raises(UserError, match=r"a\.nii is compressed; rename it to a\.nii\.gz"):
            reader(compressed)
        with pytest.raises(UserError, match=r"b\.nii\.gz cannot be read: it is not compressed; rename it to b\.nii$"):
            reader(plain)
        with pytest.raises(UserError, match=r"c\.nii\.gz cannot be read: it is no gzip file; "):
            reader(text)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_both_versions_of_nifti_in_both_byte_orders_are_read(tmp_path, kind, order, ext):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.float32)
    nib.save(kind(array, np.eye(4), header), tmp_path / f"a{ext}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{ext}").array[0].transpose(1, 2, 0), array)


# --- place ---------------------------------------------------------------------------------------------


def two_forms(kind=nib.Nifti1Image, size_in_units=1.0) -> nib.Nifti1Image:
    """A scan of 1 x 2 x 3 whose sform (code 2) and qform (code 1) place it differently, and that names its patient."""
    image, sizes = image_of(kind=kind), size_in_units * np.diag([-1.0, 2, 3])
    turn = nib.eulerangles.euler2mat(0.1, 0.2, 0.3)
    image.header.set_qform(nib.affines.from_matvec(turn @ sizes, (4, -5, 6.7)), 1)
    image.header.set_sform(nib.affines.from_matvec(sizes, (8, 9, 1 / 3)), 2)
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = b"J. Doe", b"J. Doe", b"J. Doe"
    image.header["cal_max"] = image.header["intent_code"] = image.header["toffset"] = 5
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"J. Doe, born 1950"))
    return image


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("units", [0, 1, 2, 10])
def test_prediction_carries_both_forms_of_its_scan_to_the_bit_and_nothing_of_the_patient(tmp_path, kind, units):
    scan, path = two_forms(kind, 1e-3 if units == 1 else 1), tmp_path / "prediction.nii.gz"
    scan.header["xyzt_units"] = units
    scan.to_filename(tmp_path / "scan.nii.gz")
    mask = read_volume(tmp_path / "scan.nii.gz").array[0] > 0.5
    write_like(path, mask, tmp_path / "scan.nii.gz")
    written, content = nib.load(path), gzip.decompress(path.read_bytes())
    header = kind.header_class(content[: kind.header_class.sizeof_hdr])
    assert type(written) is kind and written.shape == (4, 5, 6) and written.get_data_dtype() == np.uint8
    fields = ["qform_code", "sform_code", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "pixdim"]
    for field in fields + [f"quatern_{x}" for x in "bcd"] + [f"srow_{x}" for x in "xyz"]:
        assert header[field].tobytes() == scan.header[field].tobytes(), field
    assert (header["qform_code"], header["sform_code"]) == (1, 2)
    assert (header["scl_slope"], header["scl_inter"]) == (1, 0)
    assert not any(header[field] for field in ("cal_min", "cal_max", "intent_code", "toffset"))
    assert b"J. Doe" not in content and not written.header.extensions
    np.testing.assert_array_equal(read_volume(path).array[0], mask)
    np.testing.assert_array_equal(read_volume(path).affine, read_volume(tmp_path / "scan.nii.gz").affine)


def test_prediction_on_a_series_of_one_volume_is_3d(tmp_path):
    image_of((4, 5, 6, 1)).to_filename(tmp_path / "scan.nii")
    write_like(tmp_path / "prediction.nii", np.ones((6, 4, 5), np.uint8), tmp_path / "scan.nii")
    assert nib.load(tmp_path / "prediction.nii").shape == (4, 5, 6)


def test_written_nifti_says_where_it_lies_in_both_forms_unless_it_is_sheared(tmp_path):
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([1, 2, 3]), (4, -5, 6))
    sheared = affine.copy()
    sheared[0, 1] += 0.5
    for which, codes in ((affine, (1, 1)), (sheared, (1, 0))):
        write_volume(tmp_path / "a.nii", np.zeros((1, 4, 5, 6), np.float32), which)
        header = nib.load(tmp_path / "a.nii").header
        assert (header["sform_code"], header["qform_code"]) == codes and header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(header.get_sform(), which, atol=1e-6)
        if codes[1]:
            np.testing.assert_allclose(header.get_qform(), which, atol=1e-5)
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, which, atol=1e-6)


def test_written_nifti_keeps_every_channel(tmp_path):
    array = np.random.default_rng(0).random((2, 4, 5, 6), np.float32)
    write_volume(tmp_path / "a.nii.gz", array)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, array)


def test_header_of_two_voxel_sizes_is_refused(tmp_path):
    contradicting = image_of(pixdim=[1, 3, 3, 3, 0, 0, 0, 0], qform_code=1)
    slightly_off = image_of(pixdim=[1, 1.005, 1, 1, 0, 0, 0, 0])
    for name in ("a.nii", "a.nii.gz"):
        contradicting.to_filename(tmp_path / name)
        for reader in (read_header, read_volume):
            with pytest.raises(UserError, match=r"1 x 1 x 1 mm \(sform\) and 3 x 3 x 3 mm \(pixdim\); correct"):
                reader(tmp_path / name)
        slightly_off.to_filename(tmp_path / name)
        assert read_volume(tmp_path / name).spacing_mm == (1, 1, 1)


@pytest.mark.parametrize(("sform", "qform", "pixdim", "sound"), [(2, 0, 0, True), (2, 1, 0, False), (0, 0, 0, False)])
def test_unset_pixdim_is_ignored_where_nothing_uses_it(tmp_path, sform, qform, pixdim, sound):
    image = image_of(sform_code=sform, qform_code=qform, pixdim=[1, *[pixdim] * 3, 0, 0, 0, 0])
    image.to_filename(tmp_path / "a.nii")
    if sound:
        assert read_volume(tmp_path / "a.nii").spacing_mm == (1, 1, 1)
    else:
        with pytest.raises(UserError, match=r"0 x 0 x 0 mm \(pixdim\); correct"):
            read_header(tmp_path / "a.nii")


def test_header_that_does_not_say_where_left_is_is_refused(tmp_path):
    turned, sheared = np.diag([-1.0, 1, 1, 1]), np.eye(4)
    sheared[0, 2] = 1  # a voxel a slice: a volume of 1 where the edges say 1.4
    two, flipped, nowhere, oblique = (image_of() for _ in range(4))
    two.set_qform(nib.affines.from_matvec(nib.eulerangles.euler2mat(0.7, 0, 0)), 1)
    flipped.set_qform(turned, 1)
    nowhere.header["sform_code"] = nowhere.header["qform_code"] = 0
    oblique.set_sform(sheared, 1)
    oblique.header["pixdim"][3] = 2**0.5
    for image, words in (
        (flipped, "an sform and a qform of different orientations; set"),
        (nowhere, "no affine .* left may be right; set its sform"),
        (oblique, "a sheared affine"),
    ):
        image.to_filename(tmp_path / "a.nii.gz")
        for reader in (read_header, read_volume):
            with pytest.raises(UserError, match=words):
                reader(tmp_path / "a.nii.gz")
    rounded = image_of(qform_code=1, quatern_b=1.001)  # which nibabel refuses to turn into a matrix
    for image in (two, rounded):  # 40 degrees: a head may lie so in the scanner
        image.to_filename(tmp_path / "a.nii.gz")
        assert read_volume(tmp_path / "a.nii.gz").spacing_mm == (1, 1, 1)


@pytest.mark.parametrize(("offset", "sound"), [(0, True), (1e6, True), (-1e9, False)])
def test_values_that_single_precision_does_not_hold_apart_are_refused(tmp_path, offset, sound):
    values = offset + np.linspace(0, 4000, 64).reshape(1, 4, 4, 4)
    np.save(tmp_path / "a.npy", values)
    nib.save(nib.Nifti1Image(values[0], np.eye(4)), tmp_path / "a.nii")
    for path in (tmp_path / "a.npy", tmp_path / "a.nii"):
        if sound:
            assert np.ptp(read_volume(path).array) == pytest.approx(4000, rel=1e-3)
        else:
            with pytest.raises(UserError, match="too near to each other; subtract their offset"):
                read_volume(path)


def test_where_the_forms_agree_in_size_alone_the_sform_places(tmp_path):
    two_forms().to_filename(tmp_path / "a.nii.gz")
    # Turned to RAS, the first of its 4 voxels along -x is the last.
    np.testing.assert_allclose(read_header(tmp_path / "a.nii.gz").affine[:3, 3], [8 - 3, 9, 1 / 3], atol=1e-6)


@pytest.mark.parametrize(("unit", "per_mm"), [(0, 1), (1, 1e-3), (2, 1), (3, 1e3)])
def test_metres_and_microns_are_read_as_millimetres(tmp_path, unit, per_mm):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([2 * per_mm, 3 * per_mm, 4 * per_mm, 1]))
    image.header["xyzt_units"] = unit
    image.to_filename(tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").spacing_mm == pytest.approx((4, 2, 3))
    np.testing.assert_allclose(read_header(tmp_path / "a.nii.gz").affine, np.diag([2, 3, 4, 1]), rtol=1e-6)


@pytest.mark.parametrize(("size", "unit"), [(0.005, 2), (200, 2), (1, 1), (1, 3)])
def test_impossible_voxel_sizes_are_refused(tmp_path, size, unit):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([size, size, size, 1]))
    image.header["xyzt_units"] = unit
    image.to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a\.nii\.gz says its voxels are .+ mm, which is impossible; correct"):
        read_header(tmp_path / "a.nii.gz")


# --- head and intensities ------------------------------------------------------------------------------


def test_head_is_the_tissue_with_its_dark_inside_and_without_air():
    scan, truth = ball()
    head = head_mask(scan)
    assert (head & truth).sum() / (head | truth).sum() > 0.98
    assert head[12, 15, 13]  # the dark centre belongs to it


@pytest.mark.parametrize(("scale", "shift"), [(1000, 0), (1 / 60, 0), (1, 500), (0.01, -3)])
def test_head_does_not_depend_on_the_intensity_scale(scale, shift):
    scan, _ = ball()
    head, rescaled = head_mask(scan), head_mask((scan * scale + shift).astype(np.float32))
    assert (head & rescaled).sum() / (head | rescaled).sum() > 0.99


def test_on_atlas_intensities_the_head_is_what_exceeds_the_reference_threshold():
    scan, truth = ball(noise=0.5)
    reference, head = (scan > 8.0) | truth, head_mask(scan)
    assert (head & reference).sum() / (head | reference).sum() > 0.98


def test_constant_scan_has_no_head():
    assert not head_mask(np.full((4, 5, 6), 3.0, np.float32)).any()


@pytest.mark.parametrize("scale", [0.001, 1, 4000])
def test_otsus_threshold_is_that_of_scikit_image(scale):
    rng = np.random.default_rng(0)
    values = scale * np.concatenate([rng.normal(0, 5, 30000), rng.normal(60, 15, 9000), rng.normal(90, 5, 1000)])
    for those in (values, values.astype(np.float32), np.round(values)):
        if np.ptp(those):
            assert otsu_threshold(those) == threshold_otsu(those)


@pytest.mark.parametrize("inner", [100, 50])
def test_head_of_a_drawing_without_noise_is_all_of_it(inner):
    scan = np.zeros((20, 22, 24), np.float32)
    scan[4:16, 5:17, 6:18] = 100
    truth = scan > 0
    scan[8:11, 9:12, 10:13] = inner
    np.testing.assert_array_equal(head_mask(scan), truth)


@settings(max_examples=150, deadline=None)
@given(
    strays=st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e5, 1e5, width=32)), max_size=3),
    widths=st.tuples(*[st.tuples(st.integers(0, 12), st.integers(0, 12))] * 3),
    padding=st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, 30.0, 60.0, -32768.0])),
    turned=st.booleans(),
)
def test_head_does_not_depend_on_a_few_voxels_nor_on_padding(strays, widths, padding, turned):
    scan, truth = ball((36, 40, 38), 12.0)
    expected = head_mask(scan)
    assert overlap(expected, truth) > 0.98
    if turned:  # a field of view that lies askew in its volume: beyond its sides is padding
        _, y, x = np.indices(scan.shape) - (np.array(scan.shape)[:, None, None, None] - 1) / 2
        scan[np.maximum(np.abs(0.9 * x + 0.436 * y), np.abs(0.9 * y - 0.436 * x)) > 17] = padding
    scan = np.pad(scan, widths, constant_values=np.float32(padding))
    for index, value in strays:
        scan.flat[index % scan.size] = value
    head = head_mask(scan)
    assert overlap(head, np.pad(expected, widths)) > 0.99
    assert not (head & np.pad(np.zeros(truth.shape, bool), widths, constant_values=True)).any()


def test_one_broken_voxel_does_not_fill_the_volume_with_head():
    scan, truth = ball()
    scan[0, 0, 0] = -32768
    assert overlap(head_mask(scan), truth) > 0.98


@pytest.mark.parametrize("background", [0, -1000, 25, 99, 5000])
@pytest.mark.parametrize(("mean", "spread"), [(60, 10), (1000, 40), (0, 1), (50, 40)])
def test_head_of_a_stripped_scan_is_all_that_is_not_background(background, mean, spread):
    """Offset brains, negative values inside, and backgrounds below, amid and above the brain's intensities."""
    _, truth = ball()
    tissue = np.random.default_rng(1).normal(mean, spread, truth.shape)
    scan = np.where(truth, tissue, background).astype(np.float32)
    assert overlap(head_mask(scan), truth) > 0.97


def test_large_bright_lesion_is_not_taken_for_the_head_of_a_stripped_scan():
    scan, truth = ball(radius=11)
    lesion = np.zeros_like(truth)
    lesion[12:16, 15:20, 13:19] = True
    scan[lesion & truth] = 400
    assert overlap(head_mask(np.where(truth, scan, 0)), truth) > 0.97


def test_head_of_a_single_slice_is_not_worn_off():
    scan, truth = ball()
    assert overlap(head_mask(scan[12:13]), truth[12:13]) > 0.97


def test_normalised_head_fills_the_unit_interval_whatever_the_outliers():
    scan, _ = ball()
    head = head_mask(scan)
    spiked = scan.copy()
    spiked[12, 15, 18] = 1e6
    for volume in (scan, spiked):
        normalised = normalise(volume[None], head)
        assert normalised.dtype == np.float32 and normalised.min() == 0 and normalised.max() == 1
        assert np.median(normalised[0][head]) > 0.8


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_normalisation_undoes_scale_and_shift(scale, shift):
    scan, head = ball()
    changed = (scan * scale + shift).astype(np.float32)
    np.testing.assert_allclose(normalise(changed[None], head), normalise(scan[None], head), atol=0.02)


# --- masks and messages --------------------------------------------------------------------------------


@pytest.mark.parametrize("lesion", [1, 0.99999, 0.9999978, 1.0009])
def test_mask_that_rounds_to_0_and_1_is_binary(tmp_path, lesion):
    array = np.zeros((1, 4, 4, 4), np.float32)
    array[0, 1], array[0, 2] = lesion, 2e-5
    write_volume(tmp_path / "a_mask.npy", array)
    mask = read_binary(tmp_path / "a_mask.npy")
    assert mask.dtype == bool and mask[1].all() and mask.sum() == 16


def test_mask_of_255_with_a_slope_is_binary(tmp_path):
    image = nib.Nifti1Image(np.full((4, 4, 4), 255, np.uint8), np.eye(4))
    image.header.set_slope_inter(0.00392156, 0)
    image.to_filename(tmp_path / "a_mask.nii")
    assert 0.99 < read_volume(tmp_path / "a_mask.nii").array.max() < 1
    assert read_binary(tmp_path / "a_mask.nii").all()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0, 1, 3], "0, 1 and 3"),
        ([0, 255], "0 and 255"),
        ([7], "7"),
        ([0, 1, np.nan], "0, 1 and NaN"),
        ([0, 0.99], "0 and 0.99"),
        ([0, 0.1, 0.2, 0.3, 0.4, 1], "0, 0.1, 0.2, 0.3 and 2 other values"),
    ],
)
def test_mask_that_is_not_binary_is_refused_with_its_values(tmp_path, values, found):
    write_volume(tmp_path / "a_mask.npy", np.resize(np.array(values, np.float32), (1, 3, 4, 5)))
    with pytest.raises(UserError, match=rf"a_mask\.npy is not binary: it holds {found}; keep one lesion label"):
        read_binary(tmp_path / "a_mask.npy")


@pytest.mark.parametrize(
    ("shape", "what"), [((1, 9, 9), "a single slice"), ((9, 9, 2), "two slices"), ((9, 1, 9), "a single slice")]
)
def test_scan_of_a_slice_or_two_is_refused_as_such(tmp_path, shape, what):
    case = Case("1", None, tmp_path / "sub-1_T1w.npy", None)
    write_volume(case.scan, np.ones((1, *shape), np.float32))
    for check in (lambda: check_headers([case], (1, *shape), None), lambda: find_head(np.ones((1, *shape)), case)):
        with pytest.raises(UserError, match=rf"sub-1_T1w\.npy is {what}, of shape .+; give the whole 3D scan"):
            check()


def test_mask_outside_the_head_is_refused_with_both_possible_causes(tmp_path):
    case = Case("1", None, tmp_path / "scan.npy", tmp_path / "mask.npy")
    scan, truth = ball()
    with pytest.raises(UserError, match=r"outside the head of .+ orientation, or the scan is a block without air .+; "):
        require_mask_in_head(~truth, head_mask(scan), case)


# --- the table of voxel sizes --------------------------------------------------------------------------


def npy_cases(folder, table: str | None) -> list[Case]:
    """Three scans of one shape with ``cohort.csv`` beside their folder."""
    cases = [Case(str(i), None, folder / "Scans" / f"sub-{i}_T1w.npy", None) for i in range(3)]
    for case in cases:
        write_volume(case.scan, np.ones((1, 4, 5, 6), np.float32))
    if table is not None:
        (folder / "cohort.csv").write_text(table, encoding="utf-8")
    return cases


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_table_of_voxel_sizes_is_read_whatever_its_separator(tmp_path, capsys, separator, mark):
    rows = [["subject", "scan", "spacing_mm"], *([str(i), f"sub-{i}_T1w.npy", "1.0 2.0 3.5"] for i in range(3))]
    cases = npy_cases(tmp_path, mark + "\n".join(map(separator.join, rows)))
    assert [read_spacing(case) for case in cases] == [(3.5, 1, 2)] * 3
    check_headers(cases, (1, 4, 5, 6), None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("table", "gap"),
    [
        ("scan,spacing_mm\nsub-1_T1w.npy,1 1 1\n", "has no spacing_mm of 2 of 3 scans, e.g. sub-0_T1w.npy: "),
        ("scan,size\nsub-1_T1w.npy,1 1 1\n", "has no spacing_mm of 3 of 3 scans, e.g. sub-0_T1w.npy: "),
        ("my notes\n", "has no spacing_mm of 3 of 3 scans, e.g. sub-0_T1w.npy: "),
    ],
)
def test_table_that_does_not_tell_all_voxel_sizes_is_named_in_one_line(tmp_path, capsys, table, gap):
    check_headers(npy_cases(tmp_path, table), (1, 4, 5, 6), None)
    line = capsys.readouterr().out
    assert (
        line.startswith(f"{tmp_path / 'cohort.csv'} {gap}") and line.endswith("stay empty\n") and line.count("\n") == 1
    )


@pytest.mark.parametrize(
    "sizes", ["wide", "1 1", "0 0 0", "nan 1 1", "1000 1000 1000", "", "1 1 1\nsub-1_T1w.npy,2 2 2"]
)
def test_voxel_sizes_that_are_none_are_refused(tmp_path, sizes):
    case = npy_cases(tmp_path, f"scan,spacing_mm\nsub-1_T1w.npy,{sizes}\n")[1]
    with pytest.raises(UserError, match=r"cohort\.csv gives no three numbers H W D in mm as spacing_mm of sub-1_T1w"):
        read_spacing(case)
