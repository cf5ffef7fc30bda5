use super::*;
use crate::npz::{write_npy, write_npz};
use ndarray::Array3;
use std::fs;
use tempfile::TempDir;

/// One sequence, 3 tokens, 4 channels: codes 0 to 11, row by row.
fn codes() -> Array3<i8> {
    Array3::from_shape_fn((1, 3, 4), |(_, l, d)| (4 * l + d) as i8)
}

fn npy<T: Element>(folder: &TempDir, name: &str, array: ndarray::ArrayD<T>) {
    let array = array.as_standard_layout().into_owned();
    write_npy(folder.path().join(name), &T::wrap(array)).unwrap();
}

fn ids() -> ndarray::ArrayD<i64> {
    ndarray::arr2(&[[5i64, 6, 7]]).into_dyn()
}

fn map(folder: &TempDir, text: &str) -> Result<TraceFile> {
    let path = folder.path().join("map.toml");
    fs::write(&path, format!("version = 1\n{text}")).unwrap();
    read(folder.path(), &path)
}

fn conv(trace: &TraceFile, layer: usize) -> ndarray::Array2<i8> {
    match &trace.sequences[0][&Place::layer(layer, TracePoint::ConvOut)] {
        crate::value::Value::I8(codes) => codes.clone(),
        other => panic!("{}", other.describe()),
    }
}

#[test]
fn a_folder_in_another_layout_and_type_is_the_same_trace() {
    let folder = TempDir::new().unwrap();
    npy(&folder, "ids.npy", ids());
    let dbl = codes().permuted_axes([2, 0, 1]);
    for layer in 1..3 {
        npy(
            &folder,
            &format!("layer{layer}_conv.npy"),
            dbl.mapv(f32::from).into_dyn(),
        );
        npy(
            &folder,
            &format!("layer{layer}_scale.npy"),
            ndarray::arr1(&[0.25f32 * layer as f32]).into_dyn(),
        );
    }
    let trace = map(
        &folder,
        r#"
        first_layer = 1
        [tokens]
        source = "ids.npy"
        [[tensor]]
        source = "layer{layer}_conv.npy"
        point = "conv_out"
        dtype = "int8"
        layout = "dbl"
        scale = "layer{layer}_scale.npy"
        "#,
    )
    .unwrap();
    assert_eq!(trace.tokens.as_ref().unwrap(), &ndarray::arr2(&[[5, 6, 7]]));
    let want = codes().index_axis_move(ndarray::Axis(0), 0);
    assert_eq!(trace.layers(), 2);
    for layer in 0..2 {
        assert_eq!(conv(&trace, layer), want);
        let scale = trace.scales[&Place::layer(layer, TracePoint::ConvOut)].get();
        assert_eq!(scale, 0.25 * (layer + 1) as f32);
    }
}

#[test]
fn raw_files_and_transposed_ones_and_ids_in_the_mapping() {
    let folder = TempDir::new().unwrap();
    let dl: Vec<u8> = codes()
        .index_axis_move(ndarray::Axis(0), 0)
        .t()
        .iter()
        .map(|v| *v as u8)
        .collect();
    fs::write(folder.path().join("conv.bin"), dl).unwrap();
    let entry = |more: &str| {
        format!(
            "[tokens]\nids = [[5, 6, 7]]\n[[tensor]]\nsource = \"conv.bin\"\npoint = \"conv_out\"\nlayer = 4\n{more}"
        )
    };
    let by = |more: &str| map(&folder, &entry(more));
    let trace = by("dtype = \"int8\"\nshape = [1, 4, 3]\ntranspose = true").unwrap();
    assert_eq!(
        conv(&trace, 4),
        codes().index_axis_move(ndarray::Axis(0), 0)
    );
    let refused = |more: &str, part: &str| {
        let error = by(more).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    };
    refused("", "dtype and shape in the mapping");
    refused("dtype = \"int8\"\nshape = [1, 4, 4]", "12 bytes");
    refused(
        "dtype = \"float16\"\nshape = [1, 2, 3]\nlayout = \"bxd\"",
        "layout",
    );
    refused("dtipe = \"int8\"", "dtipe");
}

#[test]
fn an_npz_of_foreign_names_and_steps() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("dump.npz");
    let (tokens, codes) = (Array::I64(ids()), Array::I8(codes().into_dyn()));
    let row = Array::F64(ndarray::arr2(&[[1.0f64, -2.0, 0.5, 3.0]]).into_dyn());
    write_npz(
        &path,
        [("x", &codes), ("t", &tokens), ("y", &row)],
        Compression::Stored,
    )
    .unwrap();
    let mapping = folder.path().join("map.toml");
    let with = |text: &str| {
        fs::write(&mapping, format!("version = 1\n[tokens]\nsource = \"t\"\n[[tensor]]\nsource = \"x\"\npoint = \"conv_out\"\nlayer = 0\nscale = 0.5\n{text}")).unwrap();
        read(&path, &mapping)
    };
    let step = "[[tensor]]\nsource = \"y\"\npoint = \"ssm_y\"\nlayer = 0\nstep = 0\n";
    let trace = with(&format!("{step}dtype = \"float16\"")).unwrap();
    assert_eq!((trace.sequences.len(), trace.steps.len()), (1, 1));
    let refused = |text: &str, part: &str| {
        let error = with(text).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    };
    refused(&format!("{step}dtype = \"int8\""), "element 2");
    refused(
        "[[tensor]]\nsource = \"z\"\npoint = \"ssm_y\"\nlayer = 1",
        "near it:",
    );
    refused(
        "[[tensor]]\nsource = \"x\"\npoint = \"conv_out\"\nlayer = 0",
        "a second one",
    );
    refused(
        "[[tensor]]\nsource = \"x\"\npoint = \"conv\"\nlayer = 1",
        "one of hidden_in",
    );
    refused("[[tensor]]\nsource = \"x\"\npoint = \"ssm_y\"", "neither");
    fs::write(&mapping, "version = 1").unwrap();
    assert!(
        read(&path, &mapping)
            .unwrap_err()
            .to_string()
            .contains("one at least")
    );
}

#[test]
fn a_suggestion_reads_what_it_recognised() {
    let folder = TempDir::new().unwrap();
    npy(&folder, "input_ids.npy", ids());
    for layer in 0..2 {
        npy(
            &folder,
            &format!("layer{layer}_conv1d_output.npy"),
            codes().into_dyn(),
        );
    }
    npy(&folder, "gate.npy", codes().into_dyn());
    let text = suggest(folder.path()).unwrap();
    assert!(text.contains("# gate.npy: i8"), "{text}");
    let path = folder.path().join("map.toml");
    fs::write(&path, &text).unwrap();
    let trace = read(folder.path(), &path).unwrap();
    assert_eq!(trace.layers(), 2);
    assert_eq!(
        conv(&trace, 1),
        codes().index_axis_move(ndarray::Axis(0), 0)
    );
}
